"""A random tiny Llama and a tokenizer of its own, for tests of models and rewards."""

from __future__ import annotations

from typing import Any

import torch

WORDS = ("alpha", "one", "two", "three", "yes", "no", "please", "refund", "order", "the", "a", "is")


def build_tokenizer(*, pad: str | None = "<pad>", unk: str = "<unk>") -> Any:
    """Words as tokens behind a metaspace; bos, eos, unk and (unless None) pad."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = [*"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz:.,?!0123456789\n", "▁"]
    pieces = ["<unk>", "<s>", "</s>", "<pad>", *letters, *(f"▁{word}" for word in WORDS)]
    vocab = {piece: row for row, piece in enumerate(dict.fromkeys(pieces))}
    merges = []
    for word in WORDS:
        left = "▁"
        for letter in word:
            merges.append((left, letter))
            left += letter
            vocab.setdefault(left, len(vocab))
    inner = Tokenizer(models.BPE(vocab, list(dict.fromkeys(merges)), unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    from tokenizers import decoders

    inner.decoder = decoders.Metaspace(prepend_scheme="never")
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": unk, "model_max_length": 128}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special, **({"pad_token": pad} if pad else {}))


def build_model(vocab_size: int, *, layers: int = 2, seed: int = 0) -> Any:
    """A random Llama, hidden 16; weights large enough that no two tokens are equally likely."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()
