"""Intervals and tests that hold at every number of values at once, however often and whenever one looks.

| question | here |
|---|---|
| mean of bounded values, with its interval | `bounded_mean_sequence`, `rate_sequence` (from counts) |
| difference of paired values | `paired_difference_sequence` |
| difference of two independent rates | `rate_difference_sequence` |
| a quantile, such as a latency percentile, and the difference of two | `tasks.statistics.quantiles` |
| has the mean fallen below (risen above) a reference by more than a margin? | `SequentialTest` |
| several such questions at once | `adjusted_log_e`, `average_log_e` |
| p-values of looks, made sequential | `log_calibrated`, `log_e_of_looks` |
| what could have been seen with n values? | `smallest_detectable_difference` |

They need values in known bounds whose conditional mean, given the past, is one number; nothing else. The
construction is the hedged capital process of Waudby-Smith & Ramdas (2024, JRSS-B 86:1-27, section 4): half of the stake
bets on a mean above m and half on one below, and m is kept while neither half has become 1/alpha (see
`tasks.statistics.betting`). The empirical mean always lies inside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from plumbline.tasks.statistics.betting import FRACTIONS, Floats, log_capital_of_counts, lowest_mean, pooled
from plumbline.tasks.statistics.e_values import adjusted_log_e, average_log_e, log_calibrated, log_e_of_looks
from plumbline.tasks.statistics.sequential import SequentialTest

__all__ = [
    "Interval",
    "SequentialTest",
    "adjusted_log_e",
    "average_log_e",
    "bounded_mean_sequence",
    "log_calibrated",
    "log_e_of_looks",
    "paired_difference_sequence",
    "rate_difference_sequence",
    "rate_sequence",
    "smallest_detectable_difference",
]


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and its anytime-valid interval. Without values the estimate is NaN and the interval says nothing."""

    mean: float
    low: float
    high: float
    n: int

    def excludes(self, value: float) -> bool:
        """True if the value lies outside the interval."""
        return not self.low <= value <= self.high


def bounded_mean_sequence(values: ArrayLike, *, alpha: float, low: float = 0.0, high: float = 1.0) -> Interval:
    """The mean of values (n,) in [low, high], with its interval; 0.2 s for 10^5 different values.

    Raises ValueError on a value out of bounds, NaN included.
    """
    x = _scaled(values, alpha, low, high)
    if x.size == 0:
        return Interval(math.nan, low, high, 0)
    evidence, span = math.log(2 / alpha), high - low
    bottom, top = lowest_mean(x, evidence), 1.0 - lowest_mean(1.0 - x, evidence)
    return Interval(low + span * float(x.mean()), low + span * bottom, low + span * top, x.size)


def rate_sequence(successes: float, n: int, *, alpha: float) -> Interval:
    """The rate of `successes` among n: equal to `bounded_mean_sequence` of ones and zeros, whatever n is.

    `successes` may be a sum of n shares in [0, 1], such as each user's mean over their requests: log capital is concave
    in a value, so that ones and zeros in the same proportion never pay more, and the interval holds (a bit too wide).
    """
    if not 0 <= successes <= n:
        raise ValueError(f"expected 0 ≤ successes ≤ n, found successes={successes}, n={n}")
    _check_alpha(alpha)
    if n == 0:
        return Interval(math.nan, 0.0, 1.0, 0)
    grid = _means_near(successes / n, n)
    evidence = math.log(2 / alpha)
    kept = (log_capital_of_counts(successes, n, grid) < evidence) & (
        log_capital_of_counts(n - successes, n, 1.0 - grid) < evidence
    )
    first, last = np.flatnonzero(kept)[[0, -1]]
    bottom, top = grid[max(first - 1, 0)], grid[min(last + 1, grid.size - 1)]  # outwards to the grid
    return Interval(successes / n, float(bottom), float(top), n)


def paired_difference_sequence(
    a: ArrayLike, b: ArrayLike, *, alpha: float, low: float = 0.0, high: float = 1.0
) -> Interval:
    """The mean of a - b over pairs (n,), values of both in [low, high]; the interval lies in ±(high - low)."""
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"expected pairs, found shapes {first.shape} and {second.shape}")
    for side in (first, second):
        _scaled(side, alpha, low, high)
    return bounded_mean_sequence(first - second, alpha=alpha, low=low - high, high=high - low)


def rate_difference_sequence(successes_a: float, n_a: int, successes_b: float, n_b: int, *, alpha: float) -> Interval:
    """Rate of a less rate of b, two independent streams in any order; `n` is the smaller count.

    Successes may be sums of shares, as in `rate_sequence`.

    For true rates the product of both capitals is again a capital (each bets on its own stream): rates (p, q) are
    kept while it is below 2/alpha on either side, and the interval is the range of p - q among those kept. That is
    narrower by up to √2 than the difference of two intervals at alpha/2.
    """
    _check_alpha(alpha)
    for successes, n in ((successes_a, n_a), (successes_b, n_b)):
        if not 0 <= successes <= n:
            raise ValueError(f"expected 0 ≤ successes ≤ n, found successes={successes}, n={n}")
    if min(n_a, n_b) == 0:
        return Interval(math.nan, -1.0, 1.0, 0)
    low = _lowest_difference(successes_a, n_a, successes_b, n_b, alpha)
    high = -_lowest_difference(successes_b, n_b, successes_a, n_a, alpha)
    return Interval(successes_a / n_a - successes_b / n_b, low, high, min(n_a, n_b))


def smallest_detectable_difference(
    n: int,
    alpha: float,
    power: float = 0.8,
    *,
    mean: float = 0.5,
    spread: float | None = None,
    direction: Literal["above", "below"] = "below",
    two_sided: bool = True,
) -> float:
    """The smallest shift of the mean of n values in [0, 1] that an interval (or test) at `alpha` shows with `power`.

    From `mean` in the `direction` given; `spread` is the standard deviation of one value, by default that of
    a vote, √(mean·(1 - mean)). Where not even the largest shift would be seen, the answer is the largest shift. The
    distribution of the observed mean is taken as normal; tests compare it with simulations.
    """
    _check_alpha(alpha)
    if n < 0 or not 0 < mean < 1 or not 0 < power < 1:
        raise ValueError(f"expected n ≥ 0, 0 < mean < 1 and 0 < power < 1, found {n}, {mean}, {power}")
    m = mean if direction == "above" else 1.0 - mean
    vote = math.sqrt(m * (1 - m))
    share = 1.0 if spread is None else min(1.0, max(spread / vote, 1e-6))  # values m + share · (vote - m)
    if n == 0:
        return 1.0 - m
    shifts = np.linspace(0.0, share * (1 - m), 4001)
    votes = m + shifts / share  # (4001,) mean of the votes at each shift
    grown = votes[:, None] * np.log1p(FRACTIONS * share * (1 / m - 1)) + (1 - votes[:, None]) * np.log1p(
        -FRACTIONS * share
    )
    seen = pooled(n * grown) >= math.log((2 if two_sided else 1) / alpha)
    if not seen.any():
        return 1.0 - m
    chance = NormalDist().inv_cdf(power) * share * np.sqrt(votes * (1 - votes) / n)
    reached = shifts - chance >= shifts[int(np.argmax(seen))]
    return float(shifts[int(np.argmax(reached))]) if reached.any() else 1.0 - m


def _lowest_difference(ka: float, na: int, kb: float, nb: int, alpha: float) -> float:
    """The smallest p - q that is kept: bets that the rate of a is above p and that of b below q."""
    p, q = _means_near(ka / na, na), _means_near(kb / nb, nb)
    against_p = log_capital_of_counts(ka, na, p)  # falls as p rises
    against_q = log_capital_of_counts(nb - kb, nb, 1.0 - q)  # rises with q
    room = math.log(2 / alpha) - against_q  # p is kept from the first grid point with capital below this
    first = p.size - np.searchsorted(against_p[::-1], room, side="left")
    kept = first < p.size
    outwards_q = q[np.minimum(np.arange(q.size) + 1, q.size - 1)]
    return float(np.min(p[np.maximum(first[kept] - 1, 0)] - outwards_q[kept]))


def _means_near(rate: float, n: int) -> Floats:
    """A grid over [0, 1], fine where an interval around `rate` ends: steps of a 200th of its standard error there."""
    step = max(math.sqrt(max(rate * (1 - rate), 1 / n) / n), 1 / n) / 200
    near = rate + step * np.arange(-2000, 2001)
    every = np.linspace(0.0, 1.0, 2001)
    grid: NDArray[np.float64] = np.unique(np.concatenate([every, near[(near > 0) & (near < 1)]]))
    return grid


def _scaled(values: ArrayLike | Sequence[float], alpha: float, low: float, high: float) -> Floats:
    """Values as (n,) in [0, 1]."""
    _check_alpha(alpha)
    x = np.asarray(values, dtype=np.float64)
    if not low < high or x.ndim != 1 or not ((x >= low) & (x <= high)).all():
        bad = x[~((x >= low) & (x <= high))][:3].tolist() if x.ndim == 1 else x.shape
        raise ValueError(f"expected values (n,) in [{low}, {high}], found {bad}")
    return np.asarray((x - low) / (high - low), dtype=np.float64)


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise ValueError(f"expected 0 < alpha < 1, found {alpha}")
