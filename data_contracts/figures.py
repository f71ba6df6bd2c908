"""Figures of an evaluation by their dotted names in `metrics.json`, and the words that tables, gate and card share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_JUDGES = {"held_out": "held-out judge", "reward_model": "reward model"}

# In the order of the tables. {judge}: who judged the win rate.
FIGURES = {
    "win_rate.gold": "win rate over π_ref (gold)",
    "win_rate.judge": "win rate over π_ref ({judge})",
    "win_rate.judge.length_controlled": "win rate over π_ref ({judge}) at equal length",
    "endings.win_rate_both_finished": "win rate where both completions end ({judge})",
    "endings.cut_preferred": "pairs with one completion cut: the {judge} prefers it",
    "text.policy.finished": "completions that end before evaluation.max_new_tokens",
    "text.reference.finished": "completions of π_ref that end before it",
    "text.policy.tokens": "tokens per completion",
    "text.reference.tokens": "tokens per completion of π_ref",
    "preference.accuracy": "held-out preference accuracy",
    "reward_audit.accuracy": "held-out preference accuracy of the reward model",
    "judge_audit.accuracy": "held-out preference accuracy of the held-out judge",
    "calibration.ece": "calibration error (ECE) of the implied probabilities",
    "divergence.kl_nats_per_token": "KL from π_ref in nats per token",
    "gold.policy_reward": "gold reward",
    "gold.reference_reward": "gold reward of π_ref",
    "safety.policy.refusal_accuracy": "requests to refuse that are refused",
    "safety.reference.refusal_accuracy": "requests to refuse that π_ref refuses",
    "safety.policy.over_refusal": "harmless requests that are refused",
}


def words_of(name: str, judge: str = "judge") -> str:
    """The words of a figure."""
    return FIGURES[name].format(judge=judge)


def judge_of(metrics: Mapping[str, Any]) -> str:
    """Name the judge of an evaluation's win rate."""
    return _JUDGES.get(str(metrics.get("held_out_judge")), _JUDGES["reward_model"])


def look_up(values: Mapping[str, Any], name: str) -> Any:
    """The value at a dotted name; None if there is none (no gold reward, say)."""
    found: Any = values
    for key in name.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found
