from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from plumbline.tasks.evaluation.comparison.paired import paired_gain


def outcomes(*rows: list[float]) -> np.ndarray:
    return np.array(rows, dtype=np.float64)


def test_a_gain_derived_by_hand() -> None:
    """Differences 1, 1, 0, 0: mean ½, s² = 4 · ¼ / 3 = ⅓, error = √(⅓ / 4) = 0.288675, t = ½ / 0.288675 = √3.

    With 3 degrees of freedom P(T > t) = ½ - (θ + sin θ cos θ) / π, θ = arctan(t / √3) = π / 4: ½ - (π/4 + ½) / π =
    ¼ - 1 / 2π = 0.090845, twice that is p = 0.181690. The 95 % quantile is 3.182446, so the reach is 0.918693.
    """
    gain = paired_gain(outcomes([1, 1, 0.5, 0]), outcomes([0, 0, 0.5, 0]), 0.95)
    assert (gain.difference, gain.n) == (0.5, 4)
    assert gain.p == pytest.approx(0.181690, abs=1e-6)
    assert (gain.low, gain.high) == (pytest.approx(0.5 - 0.918693, abs=1e-6), pytest.approx(1.418693, abs=1e-6))


@given(st.lists(st.tuples(st.sampled_from([0, 0.5, 1]), st.sampled_from([0, 0.5, 1])), min_size=3, max_size=30))
def test_it_is_scipys_paired_t_test(pairs: list[tuple[float, float]]) -> None:
    one, other = (np.array(side, dtype=np.float64) for side in zip(*pairs, strict=True))
    if np.ptp(one - other) == 0:
        return
    gain = paired_gain(one[None], other[None], 0.95)
    assert gain.p == pytest.approx(stats.ttest_rel(one, other).pvalue)


def test_equal_sides_are_equal_beyond_doubt() -> None:
    same = outcomes([1, 0, 0.5])
    assert paired_gain(same, same, 0.95).p == 1.0
    assert paired_gain(same * 0 + 1, same * 0, 0.95).p == 0.0


def test_seeds_that_disagree_are_told() -> None:
    """Seed one: 1 against 0 on both prompts; seed two: 0 against ½: the mean gain is ½ · (1 - ½) = ¼, of two signs."""
    gain = paired_gain(outcomes([1, 1], [0, 0]), outcomes([0, 0], [0.5, 0.5]), 0.95)
    assert (gain.difference, gain.in_each_seed) == (0.25, False)
    assert paired_gain(outcomes([1, 1], [1, 0]), outcomes([0, 0], [0, 0]), 0.95).in_each_seed


@pytest.mark.parametrize("other", [outcomes([1.0]), outcomes([1, 0, 1]), np.array([1.0, 0.0])])
def test_other_prompts_cannot_be_paired(other: np.ndarray) -> None:
    with pytest.raises(ValueError, match="same n ≥ 2 prompts"):
        paired_gain(outcomes([1, 0]), other, 0.95)
