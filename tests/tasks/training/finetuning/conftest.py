"""A random model of 16 hidden units with its own tokenizer, and small preference data for it."""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from plumbline.data_contracts.records import CuratedPair, Message, Origin
from plumbline.tasks.training.finetuning.methods import FinetuneInputs
from tests.support.training import FirstRun

WORDS = ["red", "blue", "green", "one", "two", "three", "cat", "dog", "bird", "yes", "no", "please"]
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Qwen3 (hidden 16, one layer, context 64) and a word-level tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    specials = ["<|pad|>", "<|end|>", "<|unk|>", "<|user|>", "<|assistant|>", "<|system|>"]
    vocabulary = {word: number for number, word in enumerate([*specials, *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unk|>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.add_special_tokens(specials)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|end|>", pad_token="<|pad|>", unk_token="<|unk|>", model_max_length=64
    )
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(vocabulary),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=64,
            initializer_range=0.3,
            eos_token_id=1,
            pad_token_id=0,
            bos_token_id=None,
        )
    )
    folder = tmp_path_factory.mktemp("reference")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_pairs(count: int, seed: int, words: int = 3) -> list[CuratedPair]:
    """Pairs whose chosen response starts with `yes` and whose rejected one starts with `no`."""
    draw = random.Random(seed)
    pairs = []
    for number in range(count):
        question, chosen, rejected = (" ".join(draw.choices(WORDS[:9], k=draw.randint(1, words))) for _ in range(3))
        pairs.append(
            CuratedPair(
                id=f"{seed}-{number}",
                prompt=(Message(role="user", content=question),),
                chosen=f"yes {chosen}",
                rejected=f"no {rejected}",
                source="test",
                origin=Origin(file="test", line=number + 1),
                cluster=str(number),
            )
        )
    return pairs


def count_yes(prompts: Sequence[Sequence[Message]], responses: Sequence[str]) -> list[float]:
    """A judge that likes `yes`."""
    return [float(response.split().count("yes")) for response in responses]


@pytest.fixture
def inputs(reference: Path, tmp_path: Path) -> FinetuneInputs:
    """Inputs of 48 training and 12 validation pairs."""
    (tmp_path / "policy").mkdir()
    return FinetuneInputs(
        start=reference,
        reference=reference,
        train=make_pairs(48, seed=1),
        validation=make_pairs(12, seed=2),
        judge=count_yes,
        seed=7,
        threads=1,
        folder=tmp_path / "policy",
        work=tmp_path / "work",
    )


@pytest.fixture
def elsewhere(inputs: FinetuneInputs, tmp_path: Path) -> Callable[..., FinetuneInputs]:
    """The same inputs with another output folder (and `work`, unless it is to be shared)."""

    def make(name: str, *, share_work: bool = False, **changes: Any) -> FinetuneInputs:
        (tmp_path / name).mkdir()
        work = inputs.work if share_work else tmp_path / f"{name}-work"
        return dataclasses.replace(inputs, folder=tmp_path / name, work=work, **changes)

    return make


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> FirstRun:
    """The uninterrupted training that tests of a file compare theirs with."""
    return FirstRun(tmp_path_factory.mktemp("first-run"))


@pytest.fixture(scope="session")
def pairs() -> Callable[..., list[CuratedPair]]:
    """The maker of pairs."""
    return make_pairs


@pytest.fixture(scope="session")
def drifted(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that has left `reference`: the same folder with other weights."""
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("drifted") / "policy"
    shutil.copytree(reference, folder)
    torch.manual_seed(1)
    weights = load_file(folder / "model.safetensors")
    moved = {name: tensor + 0.1 * torch.randn(tensor.shape) for name, tensor in weights.items()}
    save_file(moved, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def naive_logps() -> Callable[..., list[float]]:
    """Log-probabilities (nats) of the tokens of one response, a forward each: (folder, prompt ids, ids) -> list."""
    import torch

    from plumbline.tasks.models.loading import load_policy

    @functools.cache
    def model_of(folder: Path) -> Any:
        return load_policy(folder)

    def naive(folder: Path, prompt: Sequence[int], response: Sequence[int]) -> list[float]:
        found, ids = [], list(prompt)
        for token in response:
            with torch.no_grad():
                logits = model_of(folder)(torch.tensor([ids])).logits[0, -1]
            found.append(float(torch.log_softmax(logits, dim=-1)[token]))
            ids.append(token)
        return found

    return naive


@pytest.fixture
def only_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL's own fused head is an error: on CPU the trainers read packed sequences."""

    def refuse(*_: Any) -> None:
        raise AssertionError("TRL's fused head ran over a padded rectangle")

    monkeypatch.setattr("trl.trainer.utils._ChunkedLogProbFunction.apply", refuse)
