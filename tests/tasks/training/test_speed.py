"""Minutes of a run: the sums by hand, and rates that a real model has."""

from __future__ import annotations

from pathlib import Path

import pytest

from plumbline.tasks.models.loading import load_tokenizer, save_model
from plumbline.tasks.models.pairs import TokenPair
from plumbline.tasks.params.whole import Params
from plumbline.tasks.training import speed
from plumbline.tasks.training.speed import STARTUP_S, Rates, Tokens, measure_rates, minutes
from tests.support.world import WORLD
from tests.tasks.models.tiny_llama import build_model, build_tokenizer

RATES = Rates(train=0.03, read=0.01, sample=0.02, how="given")
PAIRS = [TokenPair([4] * 10, [5] * 6, [6] * 4)] * 10
SPLITS = {name: Tokens.of(PAIRS, [10, 20]) for name in ("train", "validation", "test")}
"""Ten pairs: 2 · 10 + 6 + 4 = 30 tokens each, 16 of them prompt and chosen; two prompts of 15 tokens on average."""


def _seconds(**sections: object) -> dict[str, float]:
    found = minutes(Params.model_validate(sections), RATES, SPLITS)
    return {name: round(60 * taken - STARTUP_S, 6) for name, taken in found.items()}


def test_what_is_read_and_trained_on() -> None:
    """Reward: two epochs of 300 tokens at 0.03, and the test split at 0.01. DPO also reads every pair once by π_ref."""
    found = _seconds(
        reward={"num_train_epochs": 2},
        finetune={"methods": ["dpo"], "dpo": {"num_train_epochs": 1}},
        evaluation={"max_new_tokens": 5},
        reference={"sft": {"data": "curated", "num_train_epochs": 1, "max_examples": 5}},
    )
    assert found["reference"] == 0.5 * 160 * 0.03
    assert found["reward"] == 2 * 300 * 0.03 + 300 * 0.01
    assert found["finetune"] == 300 * 0.03 + 300 * 0.01
    assert found["evaluate"] == 2 * 300 * 0.01 + 2 * 2 * 5 * (0.02 + 2 * 0.01)


def test_what_is_sampled() -> None:
    """PPO: 128 answers of 4 tokens; each 19 tokens are trained on by two models and read by four."""
    ppo = {"total_episodes": 128, "episodes_per_update": 64, "max_completion_length": 4, "num_ppo_epochs": 1}
    found = _seconds(finetune={"methods": ["ppo"], "ppo": ppo}, evaluation={"max_new_tokens": 5})
    assert found["finetune"] == pytest.approx(128 * (4 * 0.02 + 19 * (2 * 0.03 + 4 * 0.01)))


@pytest.mark.slow
@pytest.mark.parametrize(("largest", "how"), [(10**9, "measured with this model"), (1, "counted")])
def test_rates_of_a_real_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, largest: int, how: str) -> None:
    tokenizer = build_tokenizer()
    save_model(build_model(len(tokenizer)), tokenizer, tmp_path)
    monkeypatch.setattr(speed, "_LARGEST_MEASURED", largest)
    rates = measure_rates(tmp_path, load_tokenizer(tmp_path), PAIRS, 5_000, WORLD)
    assert rates.how.startswith(how)
    assert rates.train > rates.read > 0
    assert rates.sample > 0
