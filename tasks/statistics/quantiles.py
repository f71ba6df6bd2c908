"""Quantiles without bounds, such as latency percentiles, and differences of two: intervals that hold at every look.

Howard & Ramdas (2022, Bernoulli 28:1704-1728, section 3): at the true quantile v of level p, "value ≤ v" has a rate of
at least p and "value < v" of at most p, so v is kept while neither bet against its counts has paid; the betting capital
of `tasks.statistics.betting` stands where they use a beta-binomial mixture. Infinite ends say "no bound yet".

Values may carry weights that sum to the number of independent voters, such as 1/k for each of a user's k requests:
"value ≤ v" is then a share in [0, 1] of each voter, whose capital counted as ones and zeros is never too large (it is
concave in the share).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from plumbline.tasks.statistics.anytime import Interval
from plumbline.tasks.statistics.betting import Floats, log_capital_of_counts

_RANKS = 2000


def quantile_sequence(
    values: ArrayLike, quantile: float, *, alpha: float, weights: ArrayLike | None = None
) -> Interval:
    """A quantile of values (n,), with its interval. `mean` holds the empirical quantile, `n` counts voters."""
    sample = _Sample.of(values, weights, quantile, alpha)
    if sample.x.size == 0:
        return Interval(math.nan, -math.inf, math.inf, 0)
    evidence = math.log(2 / alpha)
    first = int(np.flatnonzero(sample.against_high(quantile) < evidence)[0])
    last = int(np.flatnonzero(sample.against_low(quantile) < evidence)[-1])
    return Interval(sample.at(quantile), float(sample.from_below[first]), float(sample.from_above[last]), sample.n)


def quantile_difference_sequence(
    a: ArrayLike,
    b: ArrayLike,
    quantile: float,
    *,
    alpha: float,
    weights_a: ArrayLike | None = None,
    weights_b: ArrayLike | None = None,
    paired: bool = False,
) -> Interval:
    """A quantile of a (n,) less the same of b (m,), two streams in any order; `n` is the smaller count of voters.

    At the true quantiles (u, v) the product of both capitals is again a capital where the streams are independent
    (each bets on its own stream): they are kept while it is below 2/alpha on either side, and the interval is the range
    of u - v among those kept. With `paired`, as where both answer one prompt, the mean of both capitals takes its
    place, which is a capital whatever they have in common.
    """
    one, other = _Sample.of(a, weights_a, quantile, alpha), _Sample.of(b, weights_b, quantile, alpha)
    if min(one.x.size, other.x.size) == 0:
        return Interval(math.nan, -math.inf, math.inf, 0)
    low = _lowest_difference(one, other, quantile, alpha, paired)
    high = -_lowest_difference(other, one, quantile, alpha, paired)
    return Interval(one.at(quantile) - other.at(quantile), low, high, min(one.n, other.n))


def smallest_detectable_shift(
    values: ArrayLike,
    n_a: int,
    n_b: int,
    quantile: float,
    *,
    alpha: float,
    power: float = 0.8,
    weights: ArrayLike | None = None,
    paired: bool = False,
) -> float:
    """By how much a must lie above b for `quantile_difference_sequence` to show it with `power`; infinite: by nothing.

    Both are taken as distributed like `values`, a shifted: the lower end of the interval as the expected order
    statistics give it, and as much again as it falls short of that in 1 - power of cases (the rank of an order
    statistic is about normal). Tests compare it with simulations.
    """
    sample = _Sample.of(values, weights, quantile, alpha)
    if min(n_a, n_b, sample.x.size) == 0:
        return math.inf
    ranks = np.arange(1, _RANKS + 1) / _RANKS
    expected = np.array([sample.at(rank) for rank in ranks])
    one, other = _Sample(expected, ranks * n_a, n_a), _Sample(expected, ranks * n_b, n_b)
    place_a, place_b = _lowest_pair(one, other, quantile, alpha, paired)
    if place_a == 0 or place_b == _RANKS:
        return math.inf
    z = NormalDist().inv_cdf(power)
    rank_a, rank_b = place_a / _RANKS, min(1.0, (place_b + 1) / _RANKS)
    low_a = sample.at(max(0.0, rank_a - z * math.sqrt(rank_a * (1 - rank_a) / n_a)))
    high_b = sample.at(min(1.0, rank_b + z * math.sqrt(rank_b * (1 - rank_b) / n_b)))
    below, above = sample.at(rank_a), sample.at(rank_b)  # what the ends of the interval are expected at
    return above - below + math.hypot(below - low_a, high_b - above)


@dataclass(frozen=True, slots=True)
class _Sample:
    """Sorted values (n,), the weight up to each (n,), and the number of voters."""

    x: Floats
    upto: Floats
    n: int

    @classmethod
    def of(cls, values: ArrayLike, weights: ArrayLike | None, quantile: float, alpha: float) -> _Sample:
        x = np.asarray(values, dtype=np.float64)
        w = np.ones(x.shape) if weights is None else np.asarray(weights, dtype=np.float64)
        if not 0 < alpha < 1:
            raise ValueError(f"expected 0 < alpha < 1, found {alpha}")
        if not 0 < quantile < 1 or x.ndim != 1 or np.isnan(x).any() or w.shape != x.shape or not (w > 0).all():
            raise ValueError(
                f"expected values without NaN, 0 < quantile < 1 and a weight above 0 for each value, found {quantile}, "
                f"shapes {x.shape} and {w.shape}"
            )
        order = np.argsort(x, kind="stable")
        return cls(x[order], np.cumsum(w[order]), round(float(w.sum())))

    def at(self, quantile: float) -> float:
        """The empirical quantile: the value at which its share of the weight is passed.

        Where a value ends exactly at that share, it is the middle of that value and the next, as for a median.
        """
        share, last = quantile * self.n, self.x.size - 1
        low, high = (int(np.searchsorted(self.upto, share + slack)) for slack in (-1e-9, 1e-9))
        return float(self.x[min(low, last)] + self.x[min(high, last)]) / 2

    @property
    def from_below(self) -> Floats:
        """The smallest quantile (n + 1,) up to which 0, 1, … n values lie."""
        return np.concatenate([[-math.inf], self.x])

    @property
    def from_above(self) -> Floats:
        """The largest quantile (n + 1,) below which 0, 1, … n values lie."""
        return np.concatenate([self.x, [math.inf]])

    def against_high(self, quantile: float) -> Floats:
        """Log capital (n + 1,) of the bet that too many values lie above; it falls as the quantile rises."""
        above = np.clip(self.n - self._counts(), 0, self.n)
        return log_capital_of_counts(above, self.n, 1.0 - quantile)

    def against_low(self, quantile: float) -> Floats:
        """Log capital (n + 1,) of the bet that too many values lie below; it rises with the quantile."""
        return log_capital_of_counts(np.clip(self._counts(), 0, self.n), self.n, quantile)

    def _counts(self) -> Floats:
        return np.concatenate([[0.0], self.upto])


def _lowest_difference(a: _Sample, b: _Sample, quantile: float, alpha: float, paired: bool) -> float:
    """The smallest u - v that is kept."""
    place_a, place_b = _lowest_pair(a, b, quantile, alpha, paired)
    return float(a.from_below[place_a] - b.from_above[place_b])


def _lowest_pair(a: _Sample, b: _Sample, quantile: float, alpha: float, paired: bool) -> tuple[int, int]:
    """The places of u and v of the smallest kept u - v: bets that a's quantile lies above u and b's below v."""
    against_u, against_v = a.against_high(quantile), b.against_low(quantile)
    if paired:
        left = 4 / alpha - np.exp(np.minimum(against_v, 700.0))
        room = np.where(left > 0, np.log(np.maximum(left, 1e-300)), -math.inf)
    else:
        room = math.log(2 / alpha) - against_v
    first = against_u.size - np.searchsorted(against_u[::-1], room, side="left")
    kept = np.flatnonzero(first < against_u.size)
    best = kept[np.argmin(a.from_below[first[kept]] - b.from_above[kept])]
    return int(first[best]), int(best)
