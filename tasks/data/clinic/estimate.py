"""A figure of the clinic: a value with its interval and n, or the reason for which there is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plumbline.tasks.statistics import wilson_interval

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Estimate = dict[str, Any]
"""`value`, `low`, `high` (all None if not measured), `n`, and `why` if there is no value."""

CONFIDENCE = 0.95
RESAMPLES = 1000


def measured(value: float, low: float | None, high: float | None, n: int) -> Estimate:
    """A value with its interval, and the number of units that it rests on."""
    return {"value": float(value), "low": low, "high": high, "n": n}


def missing(why: str, n: int = 0) -> Estimate:
    """No value, and the reason; never a silent 0."""
    return {"value": None, "low": None, "high": None, "n": n, "why": why}


def share(successes: float, n: int, confidence: float = CONFIDENCE) -> Estimate:
    """A proportion with its Wilson interval; not measured without trials."""
    if n == 0:
        return missing("not enough data: nothing to count")
    return measured(successes / n, *wilson_interval(successes, n, confidence), n)


def bootstrap(statistic: Callable[[I64], float | None], units: int, seed: int) -> tuple[float | None, float | None]:
    """Percentile interval (low, high) of a statistic over resampled units.

    `statistic` takes the numbers (units,) of the units drawn, and gives None for a draw from which it cannot be
    computed. No interval for one unit, or if more than a tenth of the draws give none.
    """
    generator = np.random.default_rng(seed)
    drawn = [statistic(generator.integers(units, size=units)) for _ in range(RESAMPLES)] if units > 1 else []
    values = [value for value in drawn if value is not None]
    if len(values) < 0.9 * RESAMPLES:
        return None, None
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
