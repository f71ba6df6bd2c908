"""Proportions of pairs that come in clusters: how many independent pairs they are worth, and their interval.

Pairs on one prompt are right or wrong together, and an interval that counts them as independent is too narrow. It
is taken at the effective number of pairs instead (Korn & Graubard 1998, Survey Methodology 24:193-201, with Wilson's
interval in place of Clopper and Pearson's; Franco et al. 2019, J. Surv. Stat. Methodol. 7:334-364).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from plumbline.tasks.statistics.intervals import wilson_interval


def effective_size(
    outcomes: Sequence[float] | NDArray[np.floating], clusters: Sequence[Hashable], confidence: float = 0.95
) -> float:
    """Independent outcomes that n clustered ones are worth for an interval of their mean; n for clusters of one.

    outcomes: (n,) in [0, 1], ½ a tie; clusters: (n,), equal where outcomes belong together. With mean p, residuals
    e = y - p and K clusters, the design effect is the linearised variance of the mean over that of a simple
    random sample (Kish 1965, Survey Sampling),

        deff = K/(K-1) · Σ_c (Σ_{i∈c} e_i)² / (n/(n-1) · Σ_i e_i²),

    taken as 1 where it is below. As K clusters leave K - 1 degrees of freedom to estimate it with,
    n_eff = n/deff · (t_{n-1}/t_{K-1})² at the quantile of the interval (Korn & Graubard 1998).

    It never falls below n²/Σ_c n_c², the number of clusters where they are of one size: what n outcomes are worth when
    those of a cluster are all one draw, the most that outcomes in [0, 1] can depend on each other. This
    bound is the answer if nothing can be estimated: one cluster alone (1), or outcomes all alike.
    Raises ValueError on unequal lengths or an outcome outside [0, 1].
    """
    values = np.asarray(outcomes, dtype=np.float64)  # (n,)
    if values.shape != (len(clusters),) or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"expected outcomes in [0, 1], one for each of {len(clusters)} clusters, found {values[:3]}")
    numbers: dict[Hashable, int] = {}
    member = np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters], dtype=np.int64)  # (n,)
    n, groups = len(values), len(numbers)
    if groups == n:
        return float(n)
    bound = n**2 / float((np.bincount(member) ** 2).sum())
    if groups == 1 or np.ptp(values) == 0:
        return bound
    residuals = values - values.mean()
    between = (np.bincount(member, residuals) ** 2).sum() * groups / (groups - 1)
    deff = max(1.0, float(between / ((residuals**2).sum() * n / (n - 1))))
    return min(float(n), max(bound, n / deff * _quantile_ratio(n - 1, groups - 1, confidence) ** 2))


def clustered_interval(
    outcomes: Sequence[float] | NDArray[np.floating], clusters: Sequence[Hashable], confidence: float = 0.95
) -> tuple[float, float]:
    """Wilson interval (low, high) of the mean of clustered outcomes (n,) at their `effective_size`.

    Clusters of one give `wilson_interval(sum, n)` to the last bit; no outcomes give (0, 1).
    """
    values = np.asarray(outcomes, dtype=np.float64)
    n = len(values)
    share = effective_size(values, clusters, confidence) / n if n else 1.0
    return wilson_interval(float(values.sum()) * share, n * share, confidence)


def _quantile_ratio(many: int, few: int, confidence: float) -> float:
    """T quantile at `many` degrees of freedom over that at `few`."""
    from scipy import stats

    if not 0 < confidence < 1:
        raise ValueError(f"expected a confidence between 0 and 1, found {confidence}")
    upper = 0.5 + confidence / 2
    return float(stats.t.ppf(upper, many) / stats.t.ppf(upper, few))
