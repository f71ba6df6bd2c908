from __future__ import annotations

import math

import numpy as np
import pytest

from plumbline.tasks.statistics.anytime import Interval
from plumbline.tasks.statistics.betting import log_capital_of_counts
from plumbline.tasks.statistics.quantiles import (
    quantile_difference_sequence,
    quantile_sequence,
    smallest_detectable_shift,
)

ALPHA = 0.05


def test_a_quantile_is_covered_at_all_looks_whatever_the_distribution() -> None:
    rng, missed = np.random.default_rng(17), 0
    truth = math.exp(1.6448536)  # the 95th percentile of exp(N(0, 1))
    for _ in range(100):
        x = np.exp(rng.standard_normal(1500))
        missed += any(quantile_sequence(x[:n], 0.95, alpha=ALPHA).excludes(truth) for n in (50, 300, 900, 1500))
    assert missed <= 8
    last = quantile_sequence(x, 0.95, alpha=ALPHA)
    assert 0 < last.low < last.mean < last.high < math.inf


def test_a_median_by_hand_and_with_ties() -> None:
    # at n = 3 no bet can have paid 40, so both ends are open; ties end on the tied value itself
    assert math.isinf(quantile_sequence([1, 2, 3], 0.5, alpha=ALPHA).high)
    tied = quantile_sequence([7.0] * 200, 0.5, alpha=ALPHA)
    assert (tied.low, tied.mean, tied.high) == (7, 7, 7)


def test_weights_are_parts_of_voters_and_ones_change_nothing() -> None:
    x = np.random.default_rng(5).standard_normal(300)
    assert quantile_sequence(x, 0.9, alpha=ALPHA, weights=np.ones(300)) == quantile_sequence(x, 0.9, alpha=ALPHA)
    # a user who asked 300 times counts as one of 301: their 9s are 1/301 of the weight, and the median is 0 or 1
    many = quantile_sequence([9.0] * 300 + [0.0, 1.0] * 150, 0.5, alpha=ALPHA, weights=[1 / 300] * 300 + [1.0] * 300)
    assert (many.n, many.high <= 1) == (301, True)
    assert quantile_sequence([9.0] * 300 + [0.0, 1.0] * 150, 0.5, alpha=ALPHA).high == 9


def test_a_median_of_an_even_count_is_the_middle_of_the_two() -> None:
    assert quantile_sequence([2.0, 1.0], 0.5, alpha=ALPHA).mean == 1.5
    assert quantile_sequence([9.0, 1.0, 2.0, 3.0], 0.5, alpha=ALPHA).mean == 2.5
    assert quantile_sequence([1.0, 2.0, 3.0], 0.5, alpha=ALPHA).mean == 2.0
    # weights ½, ½ and 1: half of the weight of 2 is passed with the second value, so 2 and 7 are the two
    assert quantile_sequence([1.0, 2.0, 7.0], 0.5, alpha=ALPHA, weights=[0.5, 0.5, 1.0]).mean == 4.5


def test_a_difference_of_medians_by_hand() -> None:
    """All of a are 7 and all of b 4: u is kept only where it is 7, v where it is 4, and the difference is 3."""
    found = quantile_difference_sequence([7.0] * 200, [4.0] * 300, 0.5, alpha=ALPHA)
    assert found == Interval(3.0, 3.0, 3.0, 200)
    assert quantile_difference_sequence([7.0] * 200, [4.0] * 200, 0.5, alpha=ALPHA, paired=True).low == 3
    few = quantile_difference_sequence([7.0] * 3, [4.0] * 300, 0.5, alpha=ALPHA)
    assert (few.low, few.high) == (-math.inf, math.inf)  # three values pay no bet at 2/alpha
    assert quantile_difference_sequence([], [4.0], 0.5, alpha=ALPHA).n == 0


@pytest.mark.parametrize("paired", [False, True])
def test_the_difference_is_the_naive_range_of_kept_pairs(paired: bool) -> None:
    rng = np.random.default_rng(7)
    a, b = rng.integers(0, 30, 70).astype(float), rng.integers(0, 25, 110).astype(float)
    edge = math.log(2 / ALPHA)
    low, high = math.inf, -math.inf
    for u in np.arange(-1, 31, 0.5):
        for v in np.arange(-1, 31, 0.5):
            bets = [
                (
                    log_capital_of_counts((x > s).sum(), x.size, 0.5).item(),
                    log_capital_of_counts((y < t).sum(), y.size, 0.5).item(),
                )
                for x, s, y, t in ((a, u, b, v), (b, v, a, u))
            ]
            joint = [np.logaddexp(*bet) - math.log(2) if paired else sum(bet) for bet in bets]
            low = min(low, u - v) if joint[0] < edge else low
            high = max(high, u - v) if joint[1] < edge else high
    found = quantile_difference_sequence(a, b, 0.5, alpha=ALPHA, paired=paired)
    assert (found.low, found.high) == (low, high)


@pytest.mark.slow
def test_equal_streams_are_not_found_different_however_often_one_looks() -> None:
    rng, wrong = np.random.default_rng(11), 0
    for _ in range(60):
        x, y = np.exp(rng.standard_normal(900)), np.exp(rng.standard_normal(900))
        wrong += any(
            quantile_difference_sequence(x[:n], y[:n], 0.5, alpha=ALPHA).excludes(0) for n in range(50, 901, 50)
        )
    assert wrong <= 3  # 60 · 0.05


def test_pairs_that_go_together_are_covered_too() -> None:
    """Opposite answers to one prompt, y = 1 - x: where the product of capitals would not be one."""
    rng, wrong = np.random.default_rng(13), 0
    for _ in range(60):
        x = rng.random(600)
        found = [quantile_difference_sequence(x[:n], 1 - x[:n], 0.5, alpha=ALPHA, paired=True) for n in (60, 200, 600)]
        wrong += any(item.excludes(0) for item in found)
    assert wrong <= 3


@pytest.mark.parametrize(("quantile", "paired"), [(0.5, False), (0.5, True), (0.95, False)])
def test_the_smallest_shift_is_seen_with_the_stated_power(quantile: float, paired: bool) -> None:
    rng, n = np.random.default_rng(17), 600
    shift = smallest_detectable_shift(np.exp(rng.standard_normal(20_000)), n, n, quantile, alpha=ALPHA, paired=paired)
    seen = 0
    for _ in range(60):
        slow, fast = np.exp(rng.standard_normal(n)) + shift, np.exp(rng.standard_normal(n))
        seen += quantile_difference_sequence(slow, fast, quantile, alpha=ALPHA, paired=paired).low > 0
    assert 0.65 <= seen / 60 <= 0.97  # 0.8, standard error 0.05
    assert math.isinf(smallest_detectable_shift([1.0, 2.0], 3, 3, quantile, alpha=ALPHA, paired=paired))
