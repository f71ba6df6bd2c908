"""Audit of a reward model on held-out pairs: accuracy, calibration, and what length explains.

A pair is a forecast p = sigmoid(r(chosen) - r(rejected)) that the chosen response wins. Listed chosen first, the
outcome is always 1 and a reliability diagram says nothing. The pair has no order of its own, so each is counted
in both: (p, 1) and (1 - p, 0). The diagram is then symmetric about ½, and its ECE is that of the confidence
max(p, 1 - p) against the share of pairs whose favourite was the preferred one, bins mirrored (an odd number of
bins would put p = ½ inside a bin and blur the two halves: the number is even). Brier score and logistic loss are
the same in both orders.

Length is the number of characters of a response. Its correlation with the reward runs over all responses,
chosen and rejected; within pairs it runs over margin and length difference, again in both orders.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plumbline.data_contracts.errors import ModelError, StageError
from plumbline.data_contracts.rounding import rounded
from plumbline.tasks.params.reward import RewardThresholds
from plumbline.tasks.statistics import brier, clustered_interval, expected_calibration_error, logistic_loss, reliability

BINS = 20
"""Equal-width bins over [0, 1], hence 10 over the confidence in [½, 1]."""

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ScoredPairs:
    """Rewards, response lengths (characters) and clusters of held-out pairs, each of shape (N,)."""

    chosen: Array
    rejected: Array
    chosen_length: Array
    rejected_length: Array
    clusters: NDArray[np.str_]


def score_pairs(
    chosen: Sequence[float],
    rejected: Sequence[float],
    chosen_texts: Sequence[str],
    rejected_texts: Sequence[str],
    clusters: Sequence[str],
) -> ScoredPairs:
    """Bring the columns together. Raises `StageError` on no pairs, `ModelError` on rewards not finite."""
    if not chosen:
        raise StageError("Expected held-out pairs to audit the reward model on, found none. Enlarge the test split.")
    rewards = np.array([chosen, rejected], dtype=np.float64)  # (2, N)
    broken = int((~np.isfinite(rewards)).any(axis=0).sum())
    if broken:
        raise ModelError(
            f"Expected finite rewards, found NaN or infinity on {broken} of {len(chosen)} held-out pairs. "
            "Train the reward model again with a lower learning rate."
        )
    lengths = np.array([[len(text) for text in texts] for texts in (chosen_texts, rejected_texts)], dtype=np.float64)
    return ScoredPairs(rewards[0], rewards[1], lengths[0], lengths[1], np.array(clusters, dtype=np.str_))


def audit_reward(pairs: ScoredPairs, params: RewardThresholds) -> dict[str, Any]:
    """Figures, reliability bins, and `passed` with a `reasons` list (one a threshold missed)."""
    margins = pairs.chosen - pairs.rejected
    figures = {
        "pairs": len(margins),
        "accuracy": _accuracy(margins, pairs.clusters),
        "calibration": _calibration(margins),
        "length": _length(pairs, margins),
        "rewards": {
            "mean": float(np.mean([pairs.chosen, pairs.rejected])),
            "std": float(np.std([pairs.chosen, pairs.rejected])),
            "mean_margin": float(margins.mean()),
        },
    }
    reasons = _reasons(figures, params)
    return {**figures, "passed": not reasons, "reasons": reasons}


def _accuracy(margins: Array, clusters: NDArray[np.str_]) -> dict[str, Any]:
    """Share of margins above 0, ties half, with its Wilson interval at 95 % at the effective number of pairs."""
    if len(margins) == 0:
        return {"n": 0, "clusters": 0, "value": None, "low": None, "high": None}
    right = (np.sign(margins) + 1) / 2  # (N,) in {0, ½, 1}
    low, high = clustered_interval(right, clusters.tolist())
    value = float(right.sum()) / len(right)
    return {"n": len(right), "clusters": len(np.unique(clusters)), "value": value, "low": low, "high": high}


def _calibration(margins: Array) -> dict[str, Any]:
    p = 1 / (1 + np.exp(-np.clip(margins, -700, 700)))  # (N,); beyond 700 exp overflows, and p is 0 or 1
    both = np.concatenate([p, 1 - p])  # (2N,)
    outcomes = np.concatenate([np.ones_like(p), np.zeros_like(p)])
    return {
        "ece": expected_calibration_error(both, outcomes, BINS),
        "brier": brier(both, outcomes),
        "log_loss": logistic_loss(margins, np.ones_like(margins)),
        "reliability": reliability(both, outcomes, BINS),
    }


def _length(pairs: ScoredPairs, margins: Array) -> dict[str, Any]:
    rewards = np.concatenate([pairs.chosen, pairs.rejected])  # (2N,)
    lengths = np.concatenate([pairs.chosen_length, pairs.rejected_length])
    difference = pairs.chosen_length - pairs.rejected_length  # (N,)
    unequal = difference != 0
    favours_longer = np.sign(margins[unequal]) * np.sign(difference[unequal])
    return {
        "spearman": _correlation("spearmanr", rewards, lengths),
        "pearson": _correlation("pearsonr", rewards, lengths),
        "spearman_within_pairs": _correlation(
            "spearmanr", np.concatenate([margins, -margins]), np.concatenate([difference, -difference])
        ),
        "longer_chosen": _share(difference[unequal] > 0),
        "longer_preferred_by_model": _share(favours_longer > 0),
        "accuracy_longer_chosen": _accuracy(margins[difference > 0], pairs.clusters[difference > 0]),
        "accuracy_shorter_chosen": _accuracy(margins[difference < 0], pairs.clusters[difference < 0]),
    }


def _correlation(name: str, x: Array, y: Array) -> float | None:
    """A correlation of scipy.stats, or None if one side is constant and there is none."""
    from scipy import stats

    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(getattr(stats, name)(x, y).statistic)


def _share(flags: NDArray[np.bool_]) -> float | None:
    return float(flags.mean()) if len(flags) else None


def _reasons(figures: dict[str, Any], params: RewardThresholds) -> list[str]:
    accuracy, ece, length = figures["accuracy"], figures["calibration"]["ece"], figures["length"]
    reasons = []
    if accuracy["low"] < params.min_accuracy:
        reasons.append(
            f"accuracy {accuracy['value']:.3f} on {accuracy['n']} held-out pairs in {accuracy['clusters']} clusters: "
            f"the lower end of its 95 % interval, {rounded(accuracy['low'], params.min_accuracy, '.3f')}, "
            f"is below {params.min_accuracy:.15g} (min_accuracy)"
        )
    if ece > params.max_ece:
        shown = rounded(ece, params.max_ece, ".3f")
        reasons.append(f"calibration error {shown} is above {params.max_ece:.15g} (max_ece)")
    correlation = length["spearman"]
    if correlation is not None and abs(correlation) > params.max_length_correlation:
        shown = rounded(correlation, math.copysign(params.max_length_correlation, correlation), "+.3f")
        reasons.append(
            f"reward follows length: Spearman correlation {shown} with the response's characters is beyond "
            f"±{params.max_length_correlation:.15g} (max_length_correlation)"
        )
    shorter = length["accuracy_shorter_chosen"]
    if shorter["n"] and shorter["value"] < params.min_accuracy_shorter_chosen:
        shown = rounded(shorter["value"], params.min_accuracy_shorter_chosen, ".3f")
        reasons.append(
            f"accuracy {shown} on the {shorter['n']} pairs whose chosen response is the shorter one "
            f"is below {params.min_accuracy_shorter_chosen:.15g} (min_accuracy_shorter_chosen)"
        )
    return reasons
