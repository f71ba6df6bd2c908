"""Held-out preference accuracy of the implied reward, overall and with length held against it.

The implied reward of a response is β·(log π - log π_ref), summed over its tokens (Rafailov et al.
2023, arXiv:2305.18290, section 4). Its margin, chosen minus rejected, is in nats before β.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plumbline.tasks.evaluation.measures.estimate import clustered_proportion
from plumbline.tasks.params.evaluation import EvaluationParams

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PairLogps:
    """Summed log-probabilities (n,), in nats, of the responses of n pairs, their lengths in tokens, their clusters."""

    policy_chosen: Floats
    policy_rejected: Floats
    reference_chosen: Floats
    reference_rejected: Floats
    chosen_tokens: NDArray[np.int64]
    rejected_tokens: NDArray[np.int64]
    clusters: NDArray[np.str_]

    def margins(self) -> Floats:
        """(log π - log π_ref) of the chosen minus that of the rejected response, (n,), nats."""
        return (self.policy_chosen - self.reference_chosen) - (self.policy_rejected - self.reference_rejected)


def preference_accuracy(
    logps: PairLogps, params: EvaluationParams, gold_margins: Sequence[float] | None = None
) -> dict[str, Any]:
    """Accuracy (margin > 0, ties half) with Wilson intervals; the split by length says what length explains.

    Pairs of a cluster are not independent: intervals are those of the effective number of pairs.

    An implied reward that only counts tokens scores 1 on one side of the split and 0 on the other;
    `accuracy_length_balanced`, the mean of both sides, is then ½ whatever lengths people prefer.
    With `gold_margins` (gold reward of chosen minus rejected, per pair) the accuracy is also taken
    against the truth instead of the noisy labels, on pairs where the truth differs.
    """
    margins = logps.margins()
    hits = (np.sign(margins) + 1) / 2  # (n,) in {0, ½, 1}
    difference = logps.chosen_tokens - logps.rejected_tokens

    def accuracy(of: Floats, rows: NDArray[np.bool_]) -> dict[str, Any]:
        return clustered_proportion(of[rows], logps.clusters[rows].tolist(), params)

    shorter, longer = accuracy(hits, difference < 0), accuracy(hits, difference > 0)
    sides = [side["value"] for side in (shorter, longer) if side["value"] is not None]
    return {
        "accuracy": accuracy(hits, np.ones(hits.shape, dtype=np.bool_)),
        "accuracy_chosen_shorter": shorter,
        "accuracy_chosen_longer": longer,
        "accuracy_length_balanced": sum(sides) / 2 if len(sides) == 2 else None,
        "accuracy_gold": None if gold_margins is None else accuracy(*_against_gold(hits, gold_margins)),
        "margin_nats": {
            "mean": float(margins.mean()) if margins.size else None,
            "std": float(margins.std()) if margins.size else None,
            "length_correlation": _correlation(margins, difference),
        },
    }


def _against_gold(hits: Floats, gold_margins: Sequence[float]) -> tuple[Floats, NDArray[np.bool_]]:
    """Hits (n,) on the gold reward's own favourite, and the rows (n,) where it has one."""
    truth = np.sign(np.asarray(gold_margins, dtype=np.float64))
    return np.where(truth > 0, hits, 1 - hits), truth != 0


def _correlation(margins: Floats, difference: NDArray[np.int64]) -> float | None:
    """Pearson correlation; None if one side does not vary."""
    if margins.size < 2 or margins.std() == 0 or difference.std() == 0:
        return None
    return float(np.corrcoef(margins, difference)[0, 1])
