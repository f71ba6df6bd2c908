"""Judgements from scores and from pairwise probabilities: what the judges have in common."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import expit
from scipy.stats import rankdata

from plumbline.data_contracts.errors import JudgeError
from plumbline.tasks.models.judging import Floats, Judgement

_SAME = 9
"""Decimals to which sums of probabilities are compared: float64 sums of equal terms in another order differ beyond."""


def from_scores(scores: Sequence[float] | Floats, temperature: float | None = None) -> Judgement:
    """Judgement of K candidates by their scores, higher is better, equal ones tied.

    P(i beats j) = sigmoid((score_i - score_j) / temperature); without a temperature scores only order: 1, ½ or 0.
    Raises `JudgeError` for a score that is not finite.
    """
    values = np.asarray(scores, dtype=np.float64)  # (K,)
    if not np.isfinite(values).all():
        raise JudgeError(
            f"Expected finite scores to judge by, found {values[~np.isfinite(values)][:3].tolist()} among "
            f"{len(values)}. The model or rule that scores is broken: mend or retrain it."
        )
    margins = values[:, None] - values[None, :]  # (K, K), row minus column
    wins = (np.sign(margins) + 1) / 2 if temperature is None else expit(margins / temperature)
    return Judgement(rankdata(-values, method="average"), wins)


def from_wins(wins: Floats) -> Judgement:
    """Judgement by pairwise probabilities `wins` (K, K), P(row beats column): ranked by their sum over the columns.

    Ranks are by Borda's count, which orders as the Bradley-Terry strengths of the same answers do. Raises `JudgeError`
    unless wins lie in [0, 1], are ½ on the diagonal and add up to 1 with their mirror image.
    """
    values = np.asarray(wins, dtype=np.float64)
    square = values.ndim == 2 and values.shape[0] == values.shape[1]
    if not square or not _are_probabilities(values):
        raise JudgeError(
            "Expected P(row beats column) as a square matrix in [0, 1], ½ on the diagonal, each pair adding up to 1, "
            f"found {np.round(values, 3).tolist()[:4]}. The judge's answers were put together wrongly: report it."
        )
    return Judgement(rankdata(-values.sum(axis=1).round(_SAME), method="average"), values)


def _are_probabilities(wins: Floats) -> bool:
    inside = bool(((wins >= 0) & (wins <= 1)).all())
    return inside and np.allclose(wins + wins.T, 1, rtol=0, atol=1e-9)
