"""Calibration of binary forecasts: Brier score, logistic loss, reliability bins, expected calibration error.

Forecasts p (n,) lie in [0, 1] and so do outcomes y (n,); ½ stands for a tie. All functions raise
ValueError on no forecasts, unequal lengths or a value outside [0, 1], NaN included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = Sequence[float] | NDArray[np.floating] | NDArray[np.integer] | NDArray[np.bool_]


def brier(p: Values, y: Values) -> float:
    """Mean squared error of the forecasts, mean (p - y)², in [0, 1] (Brier 1950, two classes, one counted)."""
    forecasts, outcomes = _checked(p, y)
    return float(np.mean((forecasts - outcomes) ** 2))


def logistic_loss(logits: Values, y: Values) -> float:
    """Mean cross-entropy of the forecasts sigmoid(logits), in nats: finite where the probability would round to 0 or 1.

    log sigmoid(z) = -log(1 + e^-z); an outcome of ½ weighs both sides alike.
    """
    z, outcomes = np.asarray(logits, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if not np.isfinite(z).all():
        raise ValueError(f"expected finite logits, found {z[~np.isfinite(z)][:3].tolist()}")
    _checked(np.full(z.shape, 0.5), outcomes)
    return float(np.mean(outcomes * np.logaddexp(0, -z) + (1 - outcomes) * np.logaddexp(0, z)))


def reliability(p: Values, y: Values, bins: int = 15) -> list[dict[str, Any]]:
    """Bins of equal width with forecasts in them: low, high, n, confidence (mean p), frequency (mean y).

    Bin m holds p in ((m-1)/bins, m/bins], the first also p = 0 (Guo et al. 2017, section 2).
    Empty bins are left out.
    """
    forecasts, outcomes = _checked(p, y)
    if bins < 1:
        raise ValueError(f"expected bins ≥ 1, found {bins}")
    edges = np.linspace(0.0, 1.0, bins + 1)
    member = np.searchsorted(edges[1:-1], forecasts, side="left")  # (n,) in [0, bins)
    count = np.bincount(member, minlength=bins)
    confidence = np.bincount(member, forecasts, bins) / np.maximum(count, 1)
    frequency = np.bincount(member, outcomes, bins) / np.maximum(count, 1)
    return [
        {
            "low": float(edges[m]),
            "high": float(edges[m + 1]),
            "n": int(count[m]),
            "confidence": float(confidence[m]),
            "frequency": float(frequency[m]),
        }
        for m in np.flatnonzero(count)
    ]


def expected_calibration_error(p: Values, y: Values, bins: int = 15) -> float:
    """ECE in [0, 1]: mean |frequency - confidence| of the bins, weighted by their counts (Guo et al. 2017, eq. 3)."""
    table = reliability(p, y, bins)
    total = sum(row["n"] for row in table)
    return float(sum(row["n"] * abs(row["frequency"] - row["confidence"]) for row in table) / total)


def _checked(p: Values, y: Values) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    forecasts, outcomes = np.asarray(p, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if forecasts.ndim != 1 or forecasts.shape != outcomes.shape or forecasts.size == 0:
        raise ValueError(f"expected p and y of one equal length ≥ 1, found shapes {forecasts.shape}, {outcomes.shape}")
    for name, values in (("p", forecasts), ("y", outcomes)):
        if not ((values >= 0) & (values <= 1)).all():
            bad = values[~((values >= 0) & (values <= 1))][:3].tolist()
            raise ValueError(f"expected {name} in [0, 1], found {bad}")
    return forecasts, outcomes
