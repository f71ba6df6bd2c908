"""Paired comparison of two variants on the same prompts: is one better, beyond chance?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Gain:
    """The difference of two variants' win rates; `in_each_seed`: with one sign under all seeds."""

    difference: float
    low: float
    high: float
    p: float
    n: int
    in_each_seed: bool


def paired_gain(one: Floats, other: Floats, confidence: float) -> Gain:
    """Mean of `one - other` with its t interval and two-sided p (Student 1908, paired).

    one, other: (S, n) and (S', n), the outcome in {0, ½, 1} of each of n prompts against π_ref under each seed.
    Prompts are the units: a prompt's outcomes are averaged over seeds first. What seeds differ by is thereby not in
    the interval; `in_each_seed` says whether they agree where both sides ran under the same number of them.
    Naive equivalent: `scipy.stats.ttest_rel(one.mean(0), other.mean(0))`. Without spread, p is 1 for equal sides
    and 0 otherwise. Raises ValueError on other shapes or fewer than two prompts.
    """
    if one.ndim != 2 or other.ndim != 2 or one.shape[1] != other.shape[1] or one.shape[1] < 2:
        raise ValueError(f"expected outcomes (S, n) on the same n ≥ 2 prompts, found {one.shape} and {other.shape}")
    from scipy import stats

    differences = one.mean(axis=0) - other.mean(axis=0)  # (n,)
    n, mean = len(differences), float(differences.mean())
    error = float(differences.std(ddof=1)) / n**0.5
    reach = error * float(stats.t.ppf(0.5 + confidence / 2, n - 1))
    p = float(2 * stats.t.sf(abs(mean) / error, n - 1)) if error > 0 else float(mean == 0)
    return Gain(mean, mean - reach, mean + reach, p, n, _one_sign(one, other, mean))


def _one_sign(one: Floats, other: Floats, mean: float) -> bool:
    if one.shape != other.shape:
        return True
    return bool((np.sign((one - other).mean(axis=1)) == np.sign(mean)).all())
