import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plumbline.tasks.statistics import brier, expected_calibration_error, logistic_loss, reliability

FORECASTS = st.lists(st.tuples(st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=60)


def naive_ece(p, y, bins):
    """Guo et al. 2017, eq. 3, bin by bin with half-open intervals (low, high]."""
    total = 0.0
    for m in range(bins):
        low, high = m / bins, (m + 1) / bins
        members = [i for i in range(len(p)) if low < p[i] <= high or (m == 0 and p[i] == 0)]
        if members:
            confidence = sum(p[i] for i in members) / len(members)
            frequency = sum(y[i] for i in members) / len(members)
            total += len(members) / len(p) * abs(frequency - confidence)
    return total


def test_brier_by_hand():
    """((0.8-1)² + (0.3-0)² + (0.5-0.5)²) / 3 = (0.04 + 0.09 + 0) / 3 = 0.13 / 3."""
    assert brier([0.8, 0.3, 0.5], [1, 0, 0.5]) == pytest.approx(0.13 / 3)


def test_ece_by_hand():
    """Two bins: (0, .5] holds .2 and .4 (outcomes 0, 1), (.5, 1] holds .9 (outcome 1).

    |1/2 - .3| · 2/3 + |1 - .9| · 1/3 = .4/3 + .1/3 = 1/6.
    """
    assert expected_calibration_error([0.2, 0.4, 0.9], [0, 1, 1], bins=2) == pytest.approx(1 / 6)


def test_reliability_by_hand():
    """.5 belongs to the lower of two bins, 0 to the first, 1 to the last; of four bins the empty one is left out."""
    rows = reliability([0.0, 0.5, 1.0], [0, 1, 1], bins=4)
    assert [(row["low"], row["high"], row["n"]) for row in rows] == [(0.0, 0.25, 1), (0.25, 0.5, 1), (0.75, 1.0, 1)]
    assert rows[1]["confidence"] == 0.5
    assert rows[1]["frequency"] == 1.0


@given(FORECASTS, st.sampled_from([1, 2, 4, 8, 16]))
def test_ece_equals_the_naive_one(rows, bins):
    p, y = zip(*rows, strict=True)
    assert expected_calibration_error(p, y, bins) == pytest.approx(naive_ece(p, y, bins), abs=1e-12)


@given(FORECASTS)
def test_bins_hold_every_forecast_once_and_ece_is_bounded(rows):
    p, y = zip(*rows, strict=True)
    assert sum(row["n"] for row in reliability(p, y, 15)) == len(rows)
    assert 0 <= expected_calibration_error(p, y, 15) <= 1


def test_calibrated_forecasts_have_a_small_ece_and_inflated_ones_a_large_one():
    """y ~ Bernoulli(p), p uniform: E|frequency - p| a bin is about sqrt(2/π · p(1-p)/n) ≤ 0.4/sqrt(1333) = 0.011.

    Forecasting p² instead is wrong by p - p², 1/6 on average.
    """
    generator = np.random.default_rng(0)
    p = generator.random(20_000)
    y = generator.random(20_000) < p
    assert expected_calibration_error(p, y) < 0.02
    assert expected_calibration_error(p**2, y) == pytest.approx(1 / 6, abs=0.015)


def test_logistic_loss_by_hand():
    """z = ln 3 is p = 3/4: -ln(3/4) for a hit, -ln(1/4) for a miss, their mean for a tie."""
    z = math.log(3)
    hit, miss = -math.log(0.75), -math.log(0.25)
    assert logistic_loss([z, z, z], [1, 0, 0.5]) == pytest.approx((hit + miss + (hit + miss) / 2) / 3)


def test_logistic_loss_stays_finite_where_the_probability_rounds_to_one():
    """log(1 + e^800) = 800 to double precision, although sigmoid(800) is 1.0."""
    assert logistic_loss([800.0], [0]) == pytest.approx(800.0)


@pytest.mark.parametrize("p", [[], [1.2], [float("nan")], [[0.5]]])
def test_wrong_forecasts_are_refused(p):
    with pytest.raises(ValueError, match="expected p"):
        brier(p, [1.0] * len(p))


def test_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="equal length"):
        expected_calibration_error([0.1, 0.2], [1])
    with pytest.raises(ValueError, match="equal length"):
        logistic_loss([0.1, 0.2], [1])
