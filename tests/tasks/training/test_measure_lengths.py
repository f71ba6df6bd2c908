"""Stage `lengths`, and that everything that samples takes its length where params leave it open."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plumbline.data_contracts.artifact import read_artifact, writing
from plumbline.data_contracts.records import dump_jsonl
from plumbline.tasks.evaluation import evaluate_policy, self_play
from plumbline.tasks.models.loading import load_policy
from plumbline.tasks.params.whole import Params
from plumbline.tasks.pipeline.stage import Stage, execute
from plumbline.tasks.training import finetune_policy, measure_lengths, train_reward
from tests.tasks.training.finetuning.conftest import make_pairs, reference  # noqa: F401 (fixture)

ENDS = [1, *range(12, 18)]
"""Tokens that end a completion: the end token and six of twelve words, some 7 of 18, so that few take six tokens."""

SHORT = {
    "num_train_epochs": 0.5,
    "per_device_train_batch_size": 8,
    "eval_steps": 2,
    "logging_steps": 1,
    "early_stopping": None,
    "validation": {"prompts": 4},
}
PPO = {
    "total_episodes": 16,
    "episodes_per_update": 8,
    "eval_steps": 2,
    "calibration_prompts": 4,
    "critic_init": "reference",
    "validation": {"prompts": 4},
}
GRPO = {name: value for name, value in SHORT.items() if name != "early_stopping"} | {"eval_steps": 2}
LENIENT = {"min_kappa": -1, "max_unusable": 1.0, "max_position_bias": 1.0}


def params(**sections: Any) -> Params:
    given = {
        "reward": {"num_train_epochs": 1, "per_device_train_batch_size": 16, "eval_steps": 2, "logging_steps": 1},
        "finetune": {"methods": ["dpo", "grpo", "ppo"], "dpo": SHORT, "grpo": GRPO, "ppo": PPO},
        "mixture": {"terms": [{"kind": "brevity"}]},
        "judge": {"gains": {"kind": "schedule"}, **LENIENT},
        "evaluation": {"resamples": 100},
        "self_play": {"prompts": 39},
    }
    return Params.model_validate(given | sections)


@pytest.fixture
def root(reference: Path, tmp_path: Path) -> Path:  # noqa: F811
    """A workspace with curated splits and a π_ref of a few tokens a completion."""
    with writing(tmp_path / "models/reference", contract="causal_lm", version=1) as draft:
        for file in reference.iterdir():
            (draft.path / file.name).write_bytes(file.read_bytes())
        model = load_policy(reference)
        model.generation_config.eos_token_id = ENDS
        model.generation_config.save_pretrained(draft.path)
        draft.facts = {}
    for name in ("models/base", "data/world"):
        with writing(tmp_path / name, contract="any", version=1) as draft:
            draft.facts = {"enabled": False}
    (tmp_path / "data/curated").mkdir()
    for seed, (name, count) in enumerate({"train": 48, "validation": 16, "test": 16}.items()):
        dump_jsonl(tmp_path / "data/curated" / f"{name}.jsonl", make_pairs(count, seed))
    return tmp_path


@pytest.fixture
def run(root: Path) -> Callable[..., dict[str, Any]]:
    """Run a stage in this process; return its facts."""

    def go(stage: Stage, given: Params) -> dict[str, Any]:
        execute(stage, root, given)
        return dict(read_artifact(root / stage.out, contract=stage.contract).facts)

    return go


def test_the_stage_writes_what_it_measured(root: Path, run: Callable[..., dict[str, Any]]) -> None:
    """At 7 ends of 18 tokens 19 of 20 completions take at most 7 tokens: 10.5 with headroom, 16 as a multiple."""
    found = run(measure_lengths.STAGE, params())
    assert found["max_new_tokens"] == 16
    assert (found["enabled"], found["ended"], found["cap"], found["warnings"]) == (True, 1.0, 32, [])
    assert found["quantiles"]["0.5"] <= found["quantiles"]["0.95"] <= 10
    first = (root / "reports/lengths/manifest.json").read_bytes()
    run(measure_lengths.STAGE, params())
    assert (root / "reports/lengths/manifest.json").read_bytes() == first


def test_completions_that_do_not_end_are_warned_of(
    run: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """39 of the 48 training prompts are distinct."""
    monkeypatch.setattr("plumbline.tasks.models.sampling.stop_token_ids", lambda *_: [])
    found = run(measure_lengths.STAGE, params())
    assert found["max_new_tokens"] == 32
    (warning,) = found["warnings"]
    assert warning.startswith("0% of 39 completions of π_ref end within 32 tokens")
    assert "Set training.max_completion_length" in warning


def test_nothing_is_sampled_where_every_length_is_set(
    run: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "plumbline.tasks.models.loading", None)
    monkeypatch.setitem(sys.modules, "plumbline.tasks.models.sampling", None)
    found = run(measure_lengths.STAGE, params(training={"max_completion_length": 8}))
    assert found == {"enabled": False, "max_new_tokens": None}


@pytest.mark.slow
@pytest.mark.parametrize(("shared", "longest"), [({}, 16), ({"max_completion_length": 12}, 12)])
def test_everything_that_samples_takes_it(
    run: Callable[..., dict[str, Any]], shared: dict[str, Any], longest: int
) -> None:
    """DPO's arena, GRPO, PPO, the evaluation and self-play; a set value comes before the measured one."""
    given = params(training=shared)
    for stage in (measure_lengths.STAGE, train_reward.STAGE):
        run(stage, given)
    settings = run(finetune_policy.STAGE, given)["settings"]
    assert {settings[method]["validation"]["max_new_tokens"] for method in ("1-dpo", "2-grpo", "3-ppo")} == {longest}
    assert {settings[method]["max_completion_length"] for method in ("2-grpo", "3-ppo")} == {longest}
    assert run(evaluate_policy.STAGE, given)["max_new_tokens"] == longest
    assert run(self_play.STAGE, given)["max_new_tokens"] == longest
