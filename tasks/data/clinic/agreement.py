"""Agreement of annotators, and the accuracy that the best model could reach against their labels.

Both rest on units that two or more votes judged.
"""

from __future__ import annotations

import math

import numpy as np

from plumbline.data_contracts.extras import needs_extra
from plumbline.tasks.data.clinic.estimate import F64, I64, Estimate, bootstrap, measured, missing
from plumbline.tasks.data.clinic.units import TIE, Units

NO_OVERLAP = "not enough overlap: no pair was judged by two or more annotators"
LEAST_UNITS = 10
"""Units with two or more votes below which nothing is estimated."""


def alpha(units: Units, seed: int) -> Estimate:
    """Krippendorff's nominal alpha over the labels side 0, side 1 and tie, with a bootstrap interval over units.

    1 is perfect agreement, 0 that of chance, below 0 less than chance (Krippendorff 2019, Content Analysis, ch. 12).
    """
    with needs_extra("clinic", "plumbline clinic"):
        import krippendorff

    counts = _judged_twice(units.counts())
    if (reason := _too_few(len(counts))) is not None:
        return missing(reason, len(counts))
    if (counts.sum(axis=0) > 0).sum() == 1:
        name = "a tie" if counts[:, TIE].any() else "for one side"
        return missing(f"not enough data: every label is {name}, so chance agreement is 1", len(counts))

    def statistic(drawn: I64) -> float | None:
        table = counts[drawn]
        if (table.sum(axis=0) > 0).sum() == 1:
            return None
        return float(krippendorff.alpha(value_counts=table, level_of_measurement="nominal"))

    value = statistic(np.arange(len(counts)))
    assert value is not None
    return measured(value, *bootstrap(statistic, len(counts), seed), len(counts))


def raw_agreement(units: Units, seed: int) -> Estimate:
    """The chance that two random annotators of a unit say the same, mean over units, ties counted as a label."""
    shares = _pair_agreement(_judged_twice(units.counts()))
    return _mean(shares, seed)


def ceiling(units: Units, seed: int) -> dict[str, Estimate]:
    """Bounds on the accuracy that the best reward model could show against one more label.

    Let p_u be the share of annotators who would prefer side 0 of unit u. The best model names the side that most
    prefer, and is right on a fresh label with chance max(p_u, 1 - p_u) = (1 + |2 p_u - 1|) / 2. Two labels of the unit
    agree with chance A_u = p_u² + (1 - p_u)², so (2 p_u - 1)² = 2 A_u - 1. As x² <= |x| <= 1 and by Jensen's
    inequality, with A the mean over units,

        max(1/2, A) <= ceiling <= (1 + sqrt(2A - 1)) / 2.

    The upper bound is reached if all units are equally hard. Assumed: the votes of a unit are independent, its
    annotators are drawn like those of the labels that the model is measured against, ties are left out.
    """
    counts = units.counts()[:, :TIE]
    estimate = _mean(_pair_agreement(counts[counts.sum(axis=1) > 1]), seed)
    if estimate["value"] is None:
        return {"least": estimate, "most": estimate}
    ends = [name for name in ("value", "low", "high") if estimate[name] is not None]
    least = {name: max(0.5, estimate[name]) for name in ends}
    most = {name: upper_bound(estimate[name]) for name in ends}
    return {"least": {**estimate, **least}, "most": {**estimate, **most}}


def upper_bound(agreement: float) -> float:
    """(1 + sqrt(2A - 1)) / 2; 1/2 for agreement of chance or less."""
    return (1 + math.sqrt(max(0.0, 2 * agreement - 1))) / 2


def _judged_twice(counts: I64) -> I64:
    several: I64 = counts[counts.sum(axis=1) > 1]
    return several


def _pair_agreement(counts: I64) -> F64:
    """Share of agreeing pairs of votes in each unit: counts (U, K), two or more votes each, to (U,)."""
    n = counts.sum(axis=1)
    return np.asarray((counts * (counts - 1)).sum(axis=1) / (n * (n - 1)), dtype=np.float64)


def _mean(shares: F64, seed: int) -> Estimate:
    n = len(shares)
    if (reason := _too_few(n)) is not None:
        return missing(reason, n)
    return measured(float(shares.mean()), *bootstrap(lambda drawn: float(shares[drawn].mean()), n, seed), n)


def _too_few(units: int) -> str | None:
    if units == 0:
        return NO_OVERLAP
    if units < LEAST_UNITS:
        return f"not enough overlap: expected {LEAST_UNITS} pairs with two or more votes, found {units}"
    return None
