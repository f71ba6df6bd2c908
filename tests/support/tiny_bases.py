"""Random one-layer models of real architectures, with the end tokens and the chat template of their families.

Each byte is a token, so that any text can be read. Qwen's templates are those that TRL ships.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

CONTEXT = 256  # tokens
_QWEN_TOKENS = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "additional_special_tokens": ["<|im_start|>"]}
_OLMO_TOKENS = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}
_OLMO_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% if not loop.last %}{{ '\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\n<|assistant|>\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """Models whose names share a prefix: type and class, special tokens, whether embeddings are tied, template.

    A name that ends in `tuned` is of a model that was tuned to chat.
    """

    prefix: str
    tuned: str
    model_type: str
    class_name: str
    tokens: Mapping[str, Any]
    tied: bool
    template: str


def _of_trl(name: str) -> str:
    return files("trl").joinpath("chat_templates", f"{name}.jinja").read_text()


FAMILIES = (
    Family("Qwen/Qwen3-", "", "qwen3", "Qwen3ForCausalLM", _QWEN_TOKENS, False, _of_trl("qwen3")),
    Family("Qwen/Qwen2.5-", "-Instruct", "qwen2", "Qwen2ForCausalLM", _QWEN_TOKENS, True, _of_trl("qwen2_5")),
    Family("allenai/OLMo-2-", "-Instruct", "olmo2", "Olmo2ForCausalLM", _OLMO_TOKENS, False, _OLMO_TEMPLATE),
)


def family_of(name: str) -> Family:
    """The family of a model's name on the hub."""
    (family,) = (family for family in FAMILIES if name.startswith(family.prefix))
    return family


def write_tiny_base(name: str, folder: Path, *, seed: int = 0) -> Path:
    """Write a random model of the family of `name`, hidden 16, as safetensors with a tokenizer; returns the folder.

    As in the family, a model that was not tuned to chat has an eos token that is not its template's end of a turn.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    family = family_of(name)
    tokenizer = _tokenizer(family, tuned=name.endswith(family.tuned))
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        family.model_type,
        vocab_size=len(tokenizer) + 8,  # rows that no token has, as in Qwen
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=CONTEXT,
        initializer_range=0.3,
        tie_word_embeddings=family.tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer(family: Family, *, tuned: bool) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({letter: place for place, letter in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokens = dict(family.tokens)
    if not tuned:
        tokens["additional_special_tokens"] = [*tokens["additional_special_tokens"], tokens["eos_token"]]
        tokens["eos_token"] = tokens["pad_token"]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=CONTEXT, **tokens)
    tokenizer.chat_template = family.template
    return tokenizer
