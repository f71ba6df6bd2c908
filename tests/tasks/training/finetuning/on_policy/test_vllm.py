"""The sampler over TRL's `VLLMGeneration`.

vLLM itself needs a GPU and cannot be installed here. This is the only place of Plumbline where a fake stands in for a
library: it has the signature of TRL 1.16's class (checked below), and draws with our own sampler.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from plumbline.data_contracts.errors import ParamsError, StageError
from plumbline.data_contracts.records import Message
from plumbline.tasks.models.loading import load_policy, load_tokenizer
from plumbline.tasks.models.sampling import Completion, sample, stop_token_ids
from plumbline.tasks.params.on_policy import VllmParams
from plumbline.tasks.training.finetuning.on_policy.vllm import VllmSampler, check_vllm

PROMPTS = [(Message(role="user", content=words),) for words in ("red cat", "one", "blue dog please", "two bird")]
SETTINGS = {"max_new_tokens": 24, "temperature": 0.8, "top_p": 1.0}


class FakeEngine:
    """Draws what our sampler draws, and gives log-probabilities as vLLM does: each in a list of one."""

    def __init__(self, model: Any, tokenizer: Any, **given: Any) -> None:
        self.model, self.tokenizer, self.given = model, tokenizer, given
        self.generation_kwargs = dict(given["generation_kwargs"])
        self.calls: list[str] = []
        self.shift: float | None = 0.0  # of the log-probabilities; None: no numbers at all

    def sync_weights(self) -> None:
        self.calls.append("sync")

    def generate(self, prompts: list[list[int]], images: None, num_generations: int) -> tuple[Any, ...]:
        assert (images, num_generations) == (None, 1)
        self.calls.append(f"generate {len(prompts)}")
        drawn = self.completions(self.generation_kwargs["seed"])
        drawn += drawn[:1] * (len(prompts) - len(drawn))
        logps = [[[None if self.shift is None else value + self.shift] for value in each.logps] for each in drawn]
        return prompts, [list(each.token_ids) for each in drawn], logps, None

    def completions(self, seed: int) -> list[Completion]:
        settings = {**SETTINGS, "top_p": self.given["top_p"]}
        return sample(self.model, self.tokenizer, PROMPTS, seed=seed, batch_size=4, **settings)  # type: ignore[arg-type]


@pytest.fixture
def make(reference: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[VllmSampler, FakeEngine]]:
    """A sampler on the tiny reference, and the fake engine inside it."""
    import trl.generation.vllm_generation as theirs

    model, tokenizer = load_policy(reference), load_tokenizer(reference)
    real = inspect.signature(theirs.VLLMGeneration.__init__).parameters
    real_generate = inspect.signature(theirs.VLLMGeneration.generate).parameters

    def build(**given: Any) -> FakeEngine:
        assert given.keys() <= real.keys(), "arguments that TRL's class takes"
        assert {"prompts", "images", "num_generations"} <= real_generate.keys()
        return FakeEngine(**given | {"tokenizer": tokenizer})

    monkeypatch.setattr(theirs, "VLLMGeneration", build)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())

    def made(processes: int = 1, params: VllmParams | None = None, **changes: Any) -> tuple[VllmSampler, FakeEngine]:
        sampler = VllmSampler(
            model,
            tokenizer,
            SimpleNamespace(num_processes=processes),
            params or VllmParams(),
            max_length=64,
            **SETTINGS | changes,
        )
        return sampler, sampler._engine

    return made


def test_records_are_those_of_our_own_sampler(make: Callable[..., Any]) -> None:
    """Same tokens, same text, same finished flags, log-probabilities of the policy within 1e-4."""
    sampler, engine = make()
    completions = sampler.sample(PROMPTS, seed=11, batch_size=2)
    expected = engine.completions(11)
    assert {each.finished for each in expected} == {True, False}, "both kinds are there"
    for got, wanted in zip(completions, expected, strict=True):
        assert (got.text, got.token_ids, got.finished) == (wanted.text, wanted.token_ids, wanted.finished)
        assert got.logps == pytest.approx(wanted.logps, abs=1e-4)
    assert sampler.mismatch < 1e-4
    assert engine.calls == ["sync", "generate 4"], "weights go over before every rollout"
    assert sampler.sample(PROMPTS, seed=12, batch_size=2) != completions


def test_the_engine_is_told_what_ends_a_completion(make: Callable[..., Any]) -> None:
    _, engine = make(params=VllmParams(gpu_memory_utilization=0.5))
    given = engine.given
    assert given["generation_kwargs"] == {"stop_token_ids": stop_token_ids(engine.model, engine.tokenizer)}
    assert (given["temperature"], given["max_completion_length"], given["max_model_length"]) == (0.8, 24, 64)
    assert (given["mode"], given["gpu_memory_utilization"], given["logprobs"]) == ("colocate", 0.5, 0)


@pytest.mark.parametrize("shift", [0.3, -0.3, None])
def test_log_probabilities_of_another_model_are_refused(make: Callable[..., Any], shift: float | None) -> None:
    sampler, engine = make()
    engine.shift = 0.15  # within bfloat16's reach, and the policy's own are used
    assert sampler.sample(PROMPTS, seed=11, batch_size=2)[0].logps == pytest.approx(
        engine.completions(11)[0].logps, abs=1e-4
    )
    assert sampler.mismatch == pytest.approx(0.15, abs=1e-4)
    engine.shift = shift
    with pytest.raises(StageError, match=r"within 0\.2 nats per token .* found (0\.3|nan) over .*not synchronised"):
        sampler.sample(PROMPTS, seed=11, batch_size=2)


def test_a_nucleus_may_renormalise_by_its_mass(make: Callable[..., Any]) -> None:
    """Behind top_p ½ a log-probability grows by at most log 2: 0.2 + 0.69 are allowed."""
    sampler, engine = make(top_p=0.5)
    engine.shift = 0.8
    sampler.sample(PROMPTS, seed=11, batch_size=2)
    engine.shift = 0.95
    with pytest.raises(StageError, match=r"within 0\.893 nats"):
        sampler.sample(PROMPTS, seed=11, batch_size=2)


def test_a_server_is_asked_equally_often_by_every_process(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL cuts a server's answers into slices as long as a process's own prompts: another process has 5 here."""
    import accelerate.utils

    monkeypatch.setattr(accelerate.utils, "gather_object", lambda mine: [*mine, 5])
    sampler, engine = make(processes=2, params=VllmParams(mode="server", server_base_url="http://host:8000"))
    assert len(sampler.sample(PROMPTS, seed=11, batch_size=2)) == 4
    assert engine.calls == ["sync", "generate 5"]


def test_without_vllm_nothing_starts(reference: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ParamsError, match=r"vLLM, which is not installed. .*pip install 'trl\[vllm\]'"):
        check_vllm()
    with pytest.raises(ParamsError, match="not installed"):
        VllmSampler(None, None, None, VllmParams(), max_length=64, **SETTINGS)  # type: ignore[arg-type]


def test_what_does_not_fit_is_refused(make: Callable[..., Any]) -> None:
    with pytest.raises(ParamsError, match="temperature above 0"):
        make(temperature=0.0)
    with pytest.raises(ValidationError, match="the address belongs to mode server"):
        VllmParams(mode="server")
    with pytest.raises(ValidationError, match="the address belongs to mode server"):
        VllmParams(server_base_url="http://host:8000")
