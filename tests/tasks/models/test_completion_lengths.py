"""The rule by lengths given by hand, and the measurement on a random model that ends when its end token comes up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from plumbline.data_contracts.artifact import writing
from plumbline.data_contracts.errors import ModelError
from plumbline.data_contracts.records import Message
from plumbline.tasks.models import completion_lengths
from plumbline.tasks.models.completion_lengths import (
    MEASURED,
    MeasuredLengths,
    cap_of,
    evaluated_length,
    measure_lengths,
    settle_lengths,
)
from plumbline.tasks.models.loading import load_policy, load_tokenizer
from plumbline.tasks.params.evaluation import EvaluationParams
from plumbline.tasks.params.finetuning import FinetuneParams
from tests.tasks.training.finetuning.conftest import WORDS, reference  # noqa: F401 (fixture)

PROMPTS = [(Message(role="user", content=f"{one} {other}"),) for one in WORDS for other in WORDS]


@pytest.mark.parametrize(
    ("lengths", "longest"),
    [
        (range(1, 65), 96),  # the 61st of 64 is 61, times 1.5 is 91.5, up to a multiple of 16
        ([20] * 64, 32),  # 30
        ([32] * 64, 48),  # 48 is a multiple already
        ([1] * 64, 16),
        ([20] * 61 + [None] * 3, 32),  # three of 64 never end: the 61st still did
        ([20] * 60 + [None] * 4, 256),  # four: the 61st did not, so the cap
        ([None] * 64, 256),
        ([200] * 64, 256),  # 300 is above the cap
        ([7], 16),
    ],
)
def test_the_rule(lengths: Any, longest: int) -> None:
    assert MeasuredLengths(list(lengths), 256).longest() == longest


def test_facts_of_a_measurement() -> None:
    """Of 10: the 5th is 5, the 9th is 9, and the 10th, which 0.95 needs, did not end."""
    assert MeasuredLengths([None, *range(1, 10)], 64).facts() == {
        "completions": 10,
        "ended": 0.9,
        "quantiles": {"0.5": 5, "0.9": 9, "0.95": None},
        "cap": 64,
        "max_new_tokens": 64,
    }


@pytest.mark.parametrize(("longest", "cap"), [(4096, 512), (1024, 512), (512, 256), (65, 32), (1, 1)])
def test_the_cap_leaves_half_to_the_prompt(longest: int, cap: int) -> None:
    assert cap_of(longest) == cap


def test_lengths_are_those_of_the_model_and_the_same_again(reference: Path) -> None:  # noqa: F811
    """Of 144 prompts 64 are drawn; the context of 64 makes the cap 32. One end token of 18 ends most within it."""
    model, tokenizer = load_policy(reference).eval(), load_tokenizer(reference)
    first = measure_lengths(model, tokenizer, PROMPTS, 3, 1024)
    assert (len(first.lengths), first.cap) == (MEASURED, 32)
    assert all(length is None or 1 <= length <= 32 for length in first.lengths)
    assert 0 < first.facts()["ended"] <= 1
    assert measure_lengths(model, tokenizer, PROMPTS, 3, 1024) == first
    assert measure_lengths(model, tokenizer, PROMPTS, 4, 1024) != first


def test_what_is_judged_together_bounds_the_cap(reference: Path) -> None:  # noqa: F811
    model, tokenizer = load_policy(reference).eval(), load_tokenizer(reference)
    assert measure_lengths(model, tokenizer, PROMPTS[:4], 3, 20).cap == 10


def test_a_model_that_never_ends_gets_the_cap(reference: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr("plumbline.tasks.models.sampling.stop_token_ids", lambda *_: [])
    model, tokenizer = load_policy(reference).eval(), load_tokenizer(reference)
    found = measure_lengths(model, tokenizer, PROMPTS, 3, 1024)
    assert (found.facts()["ended"], found.longest()) == (0.0, 32)


def test_prompts_that_leave_no_room_are_named(reference: Path) -> None:  # noqa: F811
    model, tokenizer = load_policy(reference).eval(), load_tokenizer(reference)
    long = [(Message(role="user", content=" ".join(["red"] * 40)),)]
    with pytest.raises(ModelError, match=r"prompts of at most 31 tokens.*none among 1\. Set training\.max_completion"):
        measure_lengths(model, tokenizer, long, 3, 1024)
    assert measure_lengths(model, tokenizer, [*long, PROMPTS[0]], 3, 1024).lengths != []


def measured(folder: Path, **facts: Any) -> Path:
    with writing(folder, contract="completion_lengths", version=1) as draft:
        draft.facts = facts
    return folder


def test_own_values_come_first_and_the_others_are_the_measured_one(tmp_path: Path) -> None:
    given = FinetuneParams.model_validate({"ppo": {"max_completion_length": 9}, "dpo": {"validation": {"prompts": 3}}})
    found = settle_lengths(given, measured(tmp_path / "lengths", max_new_tokens=48), tmp_path / "no-model")
    assert (found.ppo.max_completion_length, found.grpo.max_completion_length) == (9, 48)
    assert {
        getattr(found, name).validation.max_new_tokens for name in ("sft", "dpo", "kto", "orpo", "grpo", "ppo")
    } == {48}
    assert found.dpo.validation.prompts == 3


def test_without_a_measurement_the_context_decides(reference: Path, tmp_path: Path) -> None:  # noqa: F811
    for folder in (None, measured(tmp_path / "lengths", enabled=False, max_new_tokens=None)):
        assert settle_lengths(EvaluationParams(), folder, reference).max_new_tokens == 32


def test_a_set_length_needs_neither_measurement_nor_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AutoConfig, "from_pretrained", None)
    monkeypatch.setattr(completion_lengths, "read_artifact", None)
    given = EvaluationParams(max_new_tokens=7)
    assert settle_lengths(given, tmp_path / "none", tmp_path / "none") == given


@pytest.mark.parametrize(
    ("manifest", "longest"),
    [
        ({"as_run": {"evaluate": {"max_new_tokens": 48}}, "settings": {"evaluation": {"max_new_tokens": 99}}}, 48),
        ({"as_run": {"evaluate": {}}, "settings": {"evaluation": {"max_new_tokens": 99}}}, 99),
        ({"as_run": {"base": {"context_length": 512}}, "settings": {}}, 256),
        ({"as_run": {}}, 512),
    ],
)
def test_the_length_of_a_registered_version(manifest: dict[str, Any], longest: int) -> None:
    assert evaluated_length(manifest) == longest
