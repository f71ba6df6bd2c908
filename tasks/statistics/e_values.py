"""E-values: bets against "nothing has changed", joined over metrics and made of p-values. All in logarithms.

An e-value has an expectation of at most 1 while nothing has changed; an e-process has it at every time one may stop,
and 1/alpha is passed ever with probability at most alpha (Ville). Means of e-values are e-values, whatever they have in
common (Vovk & Wang 2021, "E-values: calibration, combination and applications", Annals of Statistics 49:1736-1754).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np


def average_log_e(log_e: Sequence[float]) -> float:
    """Log of the mean e-value: evidence against "none of them has changed". Nothing measured gives 0."""
    if not log_e:
        return 0.0
    values = np.asarray(log_e, dtype=np.float64)
    top = float(values.max())
    return top if math.isinf(top) else top + math.log(float(np.exp(values - top).mean()))


def adjusted_log_e(log_e: Mapping[str, float]) -> dict[str, float]:
    """E-values that may be compared with 1/alpha each: at most alpha that any of those unchanged ever passes.

    Closed testing by means (Vovk & Wang 2021, section 5): the smallest mean over all groups that hold the metric. The
    groups that matter add the others in rising order. Never below Bonferroni's e/K.
    """
    rising = sorted(log_e.values())
    return {name: min(_means_with(value, rising)) for name, value in log_e.items()}


def log_calibrated(p: float) -> float:
    """The log e-value of a p-value: (1 - p + p·ln p) / (p·(ln p)²), which integrates to 1 over p (ibid., eq. 2)."""
    if not 0 <= p <= 1:
        raise ValueError(f"expected 0 ≤ p ≤ 1, found {p}")
    p = max(p, 1e-300)
    if p > 1 - 1e-4:  # its limit at 1 is 1/2; the quotient loses its digits there
        return math.log(0.5)
    return math.log((1 - p + p * math.log(p)) / (p * math.log(p) ** 2))


def _means_with(value: float, rising: Sequence[float]) -> list[float]:
    others = list(rising)
    others.remove(value)
    return [average_log_e([value, *others[:count]]) for count in range(len(others) + 1)]


def log_e_of_looks(p_values: Sequence[float]) -> float:
    """Log e-value of independent p-values, one a look: calibrated, multiplied, with a new start at each look.

    The j-th start holds the share 1/(j·(j + 1)), as in `SequentialTest`; what is left waits.
    """
    steps = np.array([log_calibrated(p) for p in p_values])
    grown = np.cumsum(steps[::-1])[::-1] if steps.size else steps  # from each start to the end
    shares = -np.log([(j + 1) * (j + 2) for j in range(steps.size)])
    waiting = -math.log(steps.size + 1)
    return float(np.logaddexp.reduce(np.append(grown + shares, waiting)))
