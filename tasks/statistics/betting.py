"""The capital of a gambler who bets against a mean: what every statistic of `tasks.statistics.anytime` stands on.

Values y in [0, 1] with conditional mean ≤ m. A gambler who stakes the fraction f of the capital on each next value
turns it into

    K_n(f) = Π_i (1 + f · (y_i/m - 1)),    0 ≤ f < 1,

a non-negative supermartingale that starts at 1 (Waudby-Smith & Ramdas 2024, "Estimating means of bounded random
variables by betting", JRSS-B 86:1-27, the capital process with λ = f/m). By Ville's inequality the chance that K_n
ever reaches 1/alpha is at most alpha: one may look after every value. We spread the first stake evenly over
`FRACTIONS` (their diversified Kelly betting): the mean of the K_n(f) is again such a process, needs no tuning, does
not hang on the order of the values, and loses at most log(len(FRACTIONS)) = 2.8 nats to the best of them. A bet on a
mean below m is the same bet on 1 - y above 1 - m. Everything is in log capital.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FRACTIONS: Final[Floats] = np.asarray(0.98 / 1.6 ** np.arange(16), dtype=np.float64)
"""Stakes: 0.98 down to 0.00085, near enough to the best for means of 10 to 10^7 values."""

SMALLEST_MEAN: Final = 1e-12
_CELLS = 1 << 14


def gains(values: Floats, mean: float | Floats) -> Floats:
    """Log capital that each value adds at each stake: values (n,) in [0, 1] -> (n, stakes); bets that they lie above.

    `mean` may be (n, 1), another one for each value.
    """
    odds = np.asarray(values)[:, None] / np.maximum(mean, SMALLEST_MEAN) - 1.0
    return np.asarray(np.log1p(FRACTIONS * odds), dtype=np.float64)


def pooled(log_capital: Floats) -> Floats:
    """Log of the mean capital over the stakes: (..., stakes) -> (...)."""
    top = log_capital.max(axis=-1)
    return np.asarray(top + np.log(np.exp(log_capital - top[..., None]).mean(axis=-1)), dtype=np.float64)


def log_capital(values: Floats, counts: Floats, mean: float) -> float:
    """Log capital after `counts` of each of `values`, betting that their mean lies above `mean`."""
    return float(pooled(counts @ gains(values, mean)))


def log_capital_of_counts(successes: float | Floats, n: float, mean: float | Floats) -> Floats:
    """Log capital after `successes` ones and n - `successes` zeros; successes and mean broadcast."""
    k, m = np.broadcast_arrays(np.asarray(successes, float), np.maximum(np.asarray(mean, float), SMALLEST_MEAN))
    won = np.log1p(FRACTIONS * (1.0 / m[..., None] - 1.0))
    return pooled(k[..., None] * won + (n - k[..., None]) * np.log1p(-FRACTIONS))


def compressed(values: Floats) -> tuple[Floats, Floats]:
    """Distinct values and their counts; very many are rounded down to a grid, which only lowers the capital."""
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) > _CELLS:
        distinct, counts = np.unique(np.floor(values * _CELLS) / _CELLS, return_counts=True)
    return distinct, counts.astype(np.float64)


def lowest_mean(values: Floats, log_threshold: float) -> float:
    """The smallest m in [0, 1] against which the capital stays below the threshold; capital falls as m rises."""
    from scipy.optimize import brentq

    distinct, counts = compressed(values)

    def surplus(mean: float) -> float:
        return log_capital(distinct, counts, mean) - log_threshold

    centre = float(distinct @ counts / counts.sum())
    if surplus(SMALLEST_MEAN) < 0:
        return 0.0
    return max(0.0, float(brentq(surplus, SMALLEST_MEAN, max(centre, 2 * SMALLEST_MEAN), xtol=1e-9)) - 1e-9)
