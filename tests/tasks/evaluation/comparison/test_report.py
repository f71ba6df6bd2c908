from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from plumbline.data_contracts.records import CuratedPair, Message, Origin
from plumbline.tasks.evaluation.compare_policies import refused_by
from plumbline.tasks.evaluation.comparison.budget import BudgetReading
from plumbline.tasks.evaluation.comparison.recommend import FigureInterval, VariantRefusal
from plumbline.tasks.evaluation.comparison.report import Shared, compare, verdict, write_report
from plumbline.tasks.evaluation.comparison.table import Trial, markdown
from plumbline.tasks.params.comparison import CompareParams
from plumbline.tasks.params.evaluation import GateParams

PARAMS = CompareParams()


def passes(metrics: Mapping[str, Any]) -> list[VariantRefusal]:
    """A gate that says no to nothing."""
    return []


def pair(number: int, prompt: str) -> CuratedPair:
    return CuratedPair(
        id=str(number),
        prompt=(Message(role="user", content=prompt),),
        chosen=f"yes {number}",
        rejected="no",
        source="test",
        origin=Origin(file="test", line=number + 1),
        cluster=str(number),
    )


def shared() -> Shared:
    """Three pairs on two prompts; the first prompt has three responses."""
    audit = {"passed": True, "accuracy": {"value": 0.7, "low": 0.68, "high": 0.72}}
    train = [pair(0, "one"), pair(1, "one"), pair(2, "two")]
    return Shared(train, audit, {"models/reference": "abc"}, seed=1, confidence=0.95, resamples=200, reward_seconds=1.5)


@pytest.mark.slow
def test_a_report_is_a_table_a_recommendation_and_plots(make_trial: Callable[..., Trial], tmp_path: Path) -> None:
    wins = {str(number): float(number < 80) for number in range(100)}
    more = {str(number): float(number < 95) for number in range(100)}
    known = (BudgetReading(9.0, 0.9, 0.1), BudgetReading(27.0, 0.95, 0.1))
    trials = [
        make_trial("dpo", wins, readings=(BudgetReading(10.0, 0.8, 0.1),)),
        make_trial("ppo", more, cpu=27.0, methods=("ppo",), ece=None, readings=known),
    ]
    comparison = compare(trials, {"grpo-seed1": "KL ran away"}, shared(), PARAMS, passes)
    write_report(comparison, trials, PARAMS, tmp_path)

    found = orjson.loads((tmp_path / "comparison.json").read_bytes())
    assert [row["name"] for row in found["variants"]] == ["dpo", "ppo"]
    assert (found["judge"], found["pareto_front"], found["failures"]) == (
        "gold",
        ["dpo", "ppo"],
        {"grpo-seed1": "KL ran away"},
    )
    assert found["recommendation"]["variant"] == "ppo"
    reasons = {reason["rule"]: reason for reason in found["recommendation"]["reasons"]}
    assert (reasons["data_size"]["figure"], reasons["pairs_or_lists"]["figure"]) == (3, 0.5)
    assert found["time_ratio"]["ratios"]["ppo"] == {"wall": 2.7, "cpu": 2.7, "wall_with_reward_model": 3.0}
    assert "the same 3 training pairs" in found["budget"]["text"]
    assert (found["budget"]["equal"], found["budget"]["factor"]) == (False, 2.7)
    assert reasons["same_budget"]["holds"]

    text = (tmp_path / "comparison.md").read_text()
    assert "Recommended: ppo (ppo)" in text
    assert (
        "Training time of ppo over dpo: 2.70x wall-clock, 2.70x CPU (literature: 2 to 5x); 3.00x wall-clock with"
        in text
    )
    assert "unequal budgets of training: 2.70x (dpo 10.0 to ppo 27.0 CPU s of training)" in text
    assert "Failed: grpo-seed1: KL ran away" in text
    names = {path.name for path in (tmp_path / "plots").iterdir()}
    assert names == {"win_rate_kl.png", "reliability.png", "training_time.png", "win_rate_time.png"}


@pytest.mark.slow
def test_the_same_trials_give_the_same_bytes(make_trial: Callable[..., Trial], tmp_path: Path) -> None:
    trials = [make_trial("dpo", {"a": 1.0, "b": 0.0})]
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        write_report(compare(trials, {}, shared(), PARAMS, passes), trials, PARAMS, tmp_path / name)
    for path in sorted((tmp_path / "one").rglob("*.*")):
        assert path.read_bytes() == (tmp_path / "other" / path.relative_to(tmp_path / "one")).read_bytes()


def test_seconds_within_the_factor_are_one_budget_and_an_unknown_reward_model_is_told(
    make_trial: Callable[..., Trial],
) -> None:
    wins = {"a": 1.0, "b": 1.0}
    trials = [make_trial("dpo", wins), make_trial("ppo", wins, cpu=14.0, methods=("ppo",))]
    comparison = compare(trials, {}, replace(shared(), reward_seconds=None), PARAMS, passes)
    assert comparison.facts["budget"]["equal"]
    assert "equal budgets of training within 1.40x (dpo 10.0 to ppo 14.0" in comparison.facts["budget"]["text"]
    assert "the reward model's own training is not known, and not in it" in verdict(comparison)


def test_where_nothing_beats_the_reference_the_verdict_says_so(make_trial: Callable[..., Trial]) -> None:
    trials = [make_trial("dpo", {"a": 0.0, "b": 0.0})]
    text = verdict(compare(trials, {}, shared(), PARAMS, passes))
    assert text.startswith("Recommended: keep π_ref")
    assert "dpo is out: its gold win rate over π_ref is 0.000" in text


OFF = {name: None for name in GateParams.model_fields if name.startswith(("min_", "max_"))}


def test_what_the_gate_would_refuse_is_left_out_and_the_reason_is_told(make_trial: Callable[..., Trial]) -> None:
    """An ECE of 0.363 under one of two seeds, where 0.25 is the limit: dpo wins more and is left out all the same."""
    wins = {str(number): float(number < 80) for number in range(100)}
    more = {str(number): float(number < 95) for number in range(100)}
    trials = [
        make_trial("dpo", more, seed=1, ece=0.1),
        make_trial("dpo", more, seed=2, ece=0.363),
        make_trial("kto", wins, seed=1, ece=0.1),
        make_trial("kto", wins, seed=2, ece=0.1),
    ]
    for trial in trials:
        trial.metrics["calibration"]["beta"] = 0.1  # type: ignore[index]
    gate = GateParams(**{**OFF, "max_ece": 0.25})
    assert compare(trials, {}, shared(), PARAMS, passes).recommendation.variant == "dpo"
    comparison = compare(trials, {}, shared(), PARAMS, lambda metrics: refused_by(metrics, gate))
    found = comparison.recommendation
    assert (found.variant, found.left_out) == ("kto", ("dpo",))
    reason = next(reason for reason in found.reasons if reason.rule == "gate")
    assert (reason.figure, reason.threshold) == (0.363, 0.25)
    text = verdict(comparison)
    assert "Left out: dpo" in text
    assert "dpo is out: the gate would refuse it (max_ece): calibration error (ECE)" in text
    assert "0.363 > 0.25" in text


@pytest.mark.slow
def test_one_prompt_is_reported_without_intervals_and_nothing_is_recommended(
    make_trial: Callable[..., Trial], tmp_path: Path
) -> None:
    trials = [make_trial("dpo", {"a": 1.0}), make_trial("ppo", {"a": 1.0}, methods=("ppo",))]
    comparison = compare(trials, {}, shared(), PARAMS, passes)
    write_report(comparison, trials, PARAMS, tmp_path)
    assert comparison.rows[0].win["judge"] == FigureInterval(1.0, None, None)
    assert comparison.recommendation.variant is None
    assert "dpo is out: too few prompts were judged for all variants: 1" in verdict(comparison)


def nodes(values: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, value in values.items():
        yield (*above, name)
        if isinstance(value, Mapping):
            yield from nodes(value, (*above, name))


@pytest.mark.slow
def test_any_figure_of_any_trial_may_be_null(make_trial: Callable[..., Trial], tmp_path: Path) -> None:
    wins = {str(number): float(number < 80) for number in range(20)}
    whole = make_trial("dpo", wins)
    for path in nodes(whole.metrics):
        changed = deepcopy(dict(whole.metrics))
        node: Any = changed
        for name in path[:-1]:
            node = node[name]
        node[path[-1]] = None
        trials = [replace(whole, metrics=changed), make_trial("ppo", wins, methods=("ppo",))]
        audit = changed["reward_audit"]
        comparison = compare(trials, {}, replace(shared(), reward_audit=audit), PARAMS, passes)
        assert markdown(comparison.rows, comparison.front)
        assert verdict(comparison)
    write_report(comparison, trials, PARAMS, tmp_path)
