"""The recommendation on synthetic facts: each rule alone decides once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from plumbline.tasks.evaluation.comparison.budget import BudgetReading
from plumbline.tasks.evaluation.comparison.recommend import Contender, Facts, FigureInterval, Recommendation, recommend
from plumbline.tasks.params.comparison import RecommendParams

PARAMS = RecommendParams()
N = 1000


def contender(name: str, wins: int, cost: float, *, kl: float = 0.1, seeds: int = 1, **more: Any) -> Contender:
    """A contender that wins the first `wins` of 1,000 prompts and loses the rest, under each of its seeds."""
    share = wins / N
    outcomes = np.tile((np.arange(N) < wins).astype(np.float64), (seeds, 1))
    methods = (name.split("-")[0],)
    win = FigureInterval(share, share - 0.03, share + 0.03)
    defaults: dict[str, Any] = {"cpu_seconds": 100.0, "agreement": 0.8}
    return Contender(
        name,
        methods,
        win,
        FigureInterval(kl, kl - 0.01, kl + 0.01),
        cost=cost,
        outcomes=outcomes,
        **{**defaults, **more},
    )


def facts(*contenders: Contender, **changes: Any) -> Facts:
    known = Facts(
        metric="gold",
        pairs=20_000,
        prompts=150_000,
        listed_prompts=0,
        reward_passed=True,
        reward_accuracy=FigureInterval(0.7, 0.68, 0.72),
        contenders=contenders,
    )
    return replace(known, **changes)


def rules(found: Recommendation, *, holding: bool) -> list[str]:
    return [reason.rule for reason in found.reasons if reason.holds is holding]


def test_exploration_that_lifts_the_ceiling_is_worth_its_price() -> None:
    """700 against 800 wins on the same 1,000 prompts differ on 100 of them: p far below 0.05."""
    found = recommend(facts(contender("dpo", 700, 1.0), contender("ppo", 800, 3.0)), PARAMS)
    assert (found.variant, found.methods, found.tied) == ("ppo", ("ppo",), ("ppo",))
    reason = next(reason for reason in found.reasons if reason.rule == "exploration")
    assert reason.holds
    assert reason.figure == pytest.approx(0.1)
    assert "0.800 against dpo 0.700" in reason.text


def test_a_tie_goes_to_the_cheaper() -> None:
    """Two more wins of 1,000: t = √2 on 999 degrees of freedom, p = 0.157."""
    found = recommend(facts(contender("dpo", 700, 1.0), contender("ppo", 702, 3.0)), PARAMS)
    assert (found.variant, set(found.tied)) == ("dpo", {"dpo", "ppo"})
    assert "exploration" in rules(found, holding=False)
    cost = next(reason for reason in found.reasons if reason.rule == "cost")
    assert "p = 0.16" in cost.text
    assert (cost.figure, cost.threshold) == (1.0, 3.0)


def test_a_gain_too_small_to_matter_is_a_tie_however_significant() -> None:
    """8 more wins of 1,000, p = 0.0047, but below min_gain = 0.01."""
    pair = (contender("dpo", 700, 1.0), contender("ppo", 708, 3.0))
    assert recommend(facts(*pair), PARAMS).variant == "dpo"
    assert recommend(facts(*pair), RecommendParams(min_gain=0.0)).variant == "ppo"


def test_many_tests_share_one_level() -> None:
    """12 more wins: p = 0.0005 < 0.05 / 3, but not < 0.001 / 3. The level is split by Bonferroni."""
    rivals = [contender("dpo", 700, 1.0), contender("kto", 700, 1.0), contender("orpo", 700, 1.0)]
    best = contender("ppo", 712, 3.0)
    assert recommend(facts(*rivals, best), PARAMS).variant == "ppo"
    assert recommend(facts(*rivals, best), RecommendParams(alpha=0.001)).variant == "dpo"
    assert recommend(facts(rivals[0], best), RecommendParams(alpha=0.001)).variant == "ppo"


def test_a_gain_under_one_seed_alone_is_a_tie() -> None:
    """PPO wins 900 under seed one, 640 under seed two: the mean gain of 70 is significant, but not in each seed."""
    ppo = contender("ppo", 770, 3.0)
    uneven = np.stack([(np.arange(N) < 900), (np.arange(N) < 640)]).astype(np.float64)
    even = np.stack([(np.arange(N) < 770), (np.arange(N) < 770)]).astype(np.float64)
    dpo = contender("dpo", 700, 1.0, seeds=2)
    assert recommend(facts(dpo, replace(ppo, outcomes=even)), PARAMS).variant == "ppo"
    assert recommend(facts(dpo, replace(ppo, outcomes=uneven)), PARAMS).variant == "dpo"


def test_equal_costs_leave_it_to_the_win_rate_then_the_kl_then_the_name() -> None:
    """5 % more seconds are within same_cost = 1.1."""
    low, high = contender("dpo-a", 700, 1.0), contender("dpo-b", 704, 1.05)
    assert recommend(facts(low, high), PARAMS).variant == "dpo-b"
    assert recommend(facts(low, contender("dpo-b", 700, 1.05, kl=0.05)), PARAMS).variant == "dpo-b"
    assert recommend(facts(contender("dpo-b", 700, 1.0), low), PARAMS).variant == "dpo-a"


@pytest.mark.parametrize(
    ("ppo", "changes", "rule", "named"),
    [
        ({"kl": 0.25}, {}, "kl_band", "0.250 nats per token leaves the band (> 0.2)"),
        ({"agreement": 0.6}, {}, "judge_agreement", "agree on 0.600 of its samples (< 0.7)"),
        ({"cpu_seconds": 101.0}, {"budget_cpu_seconds": 100.0}, "budget", "101.0 CPU s of training are over budget"),
        ({}, {"reward_passed": False}, "reward_model", "not relied on"),
        ({}, {"reward_accuracy": FigureInterval(0.6, 0.59, 0.61)}, "reward_model", "not relied on"),
    ],
)
def test_what_is_out_says_why_and_the_next_best_is_taken(
    ppo: dict[str, Any], changes: dict[str, Any], rule: str, named: str
) -> None:
    pair = (contender("dpo", 700, 1.0, cpu_seconds=80.0), contender("ppo", 800, 3.0, **{"cpu_seconds": 90.0, **ppo}))
    assert recommend(facts(*pair[:1], contender("ppo", 800, 3.0)), PARAMS).variant == "ppo"
    found = recommend(facts(*pair, **changes), PARAMS)
    assert found.variant == "dpo"
    refused = next(reason for reason in found.reasons if reason.rule == rule)
    assert refused.text.startswith("ppo is out: ")
    assert named in refused.text


def readings(*won: tuple[float, float], kl: float = 0.1) -> dict[str, Any]:
    return {"readings": (tuple(BudgetReading(seconds, share, kl) for seconds, share in won),)}


DPO_40 = contender("dpo", 700, 1.0, cpu_seconds=40.0, **readings((20, 0.6), (40, 0.7)))


@pytest.mark.parametrize(
    ("ppo", "chosen", "told"),
    [
        ({"cpu_seconds": 60.0}, "ppo", None),
        (readings((30, 0.72), (100, 0.8)), "ppo", "it had won 0.720 of validation prompts against 0.700"),
        (readings((30, 0.705), (100, 0.8)), "dpo", "the lead does not count"),
        (readings((30, 0.9), (100, 0.8), kl=0.5), "ppo", "it had won 0.900"),
        (readings((50, 0.9), (100, 0.9)), "dpo", "no evaluation of ppo by then"),
        ({}, "dpo", "no evaluation of ppo by then"),
    ],
)
def test_a_lead_at_many_times_the_seconds_counts_only_if_it_was_there_at_the_cheapers(
    ppo: dict[str, Any], chosen: str, told: str | None
) -> None:
    """60 s over 40 s are one budget, 100 s are not: PPO then has to read 0.71 or more by 40 s, against DPO's 0.7."""
    found = recommend(facts(DPO_40, contender("ppo", 800, 3.0, **ppo)), PARAMS)
    assert found.variant == chosen
    leads = [reason for reason in found.reasons if reason.rule == "same_budget"]
    assert [reason.holds for reason in leads] == ([] if told is None else [chosen == "ppo"])
    assert told is None or told in leads[0].text
    exploration = next(reason for reason in found.reasons if reason.rule == "exploration")
    assert exploration.holds is (chosen == "ppo")


def test_what_is_set_aside_leaves_the_next_best_to_be_judged_by_its_own_lead() -> None:
    """GRPO's lead over DPO at 50 s counts (1.25 times its 40 s); PPO, better still at 100 s, shows nothing by then."""
    grpo = contender("grpo", 760, 2.0, cpu_seconds=50.0, **readings((50, 0.76)))
    found = recommend(facts(DPO_40, grpo, contender("ppo", 800, 3.0)), PARAMS)
    assert (found.variant, found.tied) == ("grpo", ("grpo",))


def test_dpo_needs_no_reward_model() -> None:
    assert recommend(facts(contender("dpo", 700, 1.0), reward_passed=False), PARAMS).variant == "dpo"


def test_where_nothing_beats_the_reference_it_is_kept() -> None:
    """520 wins of 1,000: the lower end is 0.49."""
    found = recommend(facts(contender("dpo", 520, 1.0)), PARAMS)
    assert (found.variant, found.methods) == (None, ())
    assert "beats_reference" in rules(found, holding=False)


def test_without_an_explorer_the_need_for_exploration_is_not_claimed() -> None:
    found = recommend(facts(contender("dpo", 700, 1.0)), PARAMS)
    reason = next(reason for reason in found.reasons if reason.rule == "exploration")
    assert "not measured" in reason.text
    assert "prompt_pool" not in rules(found, holding=True) + rules(found, holding=False)


def test_every_reason_names_its_figure_and_threshold() -> None:
    found = recommend(facts(contender("dpo", 700, 1.0), contender("ppo", 800, 3.0), listed_prompts=90_000), PARAMS)
    assert rules(found, holding=True) == [
        "data_size",
        "pairs_or_lists",
        "reward_audit",
        "reward_accuracy",
        "prompt_pool",
        "exploration",
        "cost",
    ]
    small = recommend(facts(contender("ppo", 800, 3.0), pairs=6613, prompts=6613), PARAMS)
    assert rules(small, holding=False)[:3] == ["data_size", "pairs_or_lists", "prompt_pool"]
    text = next(reason.text for reason in small.reasons if reason.rule == "data_size")
    assert "6,613" in text
    assert "10,000" in text
