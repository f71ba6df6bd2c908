from __future__ import annotations

import math

import pytest

from plumbline.tasks.evaluation.comparison.budget import BudgetReading, Spread, readings_of, win_rate_at

FACTS = {
    "steps": {"planned": 400, "run": 200},
    "evaluations": [
        {"step": 50, "win_rate": 0.6, "kl_per_token": 0.05, "judge_score": 1.0},
        {"step": 100, "win_rate": 0.8, "kl_per_token": 0.3},
        {"step": 200, "win_rate": 0.7, "kl_per_token": 0.1},
    ],
}


def test_seconds_of_an_evaluation_follow_from_its_share_of_the_steps_that_were_run() -> None:
    """40 s over the 200 steps that were run, not the 400 planned: 0.2 s a step."""
    assert readings_of(FACTS, 40.0) == (
        BudgetReading(10, 0.6, 0.05),
        BudgetReading(20, 0.8, 0.3),
        BudgetReading(40, 0.7, 0.1),
    )


def test_a_stack_and_a_training_without_win_rates_have_no_readings() -> None:
    assert readings_of({"stages": {"1-dpo": FACTS}}, 40.0) == ()
    assert readings_of(FACTS | {"evaluations": [{"step": 200, "preference_accuracy": 0.7}]}, 40.0) == ()


@pytest.mark.parametrize(("seconds", "kept"), [(9.9, None), (10, 0.6), (20, 0.6), (39, 0.6), (math.inf, 0.7)])
def test_kept_is_the_best_by_then_inside_the_band(seconds: float, kept: float | None) -> None:
    """The 0.8 at 20 s lies beyond a KL of 0.2; with a band up to 0.3 it is kept from there on."""
    readings = readings_of(FACTS, 40.0)
    assert win_rate_at([readings], seconds, 0.2) == kept
    assert win_rate_at([readings], seconds, 0.3) == (0.8 if seconds >= 20 else kept)


def test_where_none_is_inside_the_band_the_best_of_all_is_kept() -> None:
    assert win_rate_at([readings_of(FACTS, 40.0)], math.inf, 0.01) == 0.8


def test_seeds_are_averaged_and_one_without_a_reading_leaves_it_unknown() -> None:
    """At 25 s the seed that took 40 s had kept 0.6, the one that took 25 s has its whole 0.7."""
    slow, fast = readings_of(FACTS, 40.0), readings_of(FACTS, 25.0)
    assert win_rate_at([slow, fast], 25.0, 0.2) == pytest.approx(0.65)
    assert win_rate_at([slow, fast], 8.0, 0.2) is None
    assert win_rate_at([], 8.0, 0.2) is None


def test_a_budget_is_equal_within_the_factor() -> None:
    assert Spread(40.0, 60.0, 1.5).equal
    assert not Spread(40.0, 61.0, 1.5).equal
    assert Spread(40.0, 60.0, 1.5).factor == 1.5
