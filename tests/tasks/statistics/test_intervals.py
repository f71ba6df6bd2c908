import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from plumbline.tasks.statistics import paired_bootstrap, wilson_interval


def test_wilson_by_hand():
    """8 of 10 at z = 1.959964: centre (.8 + z²/20)/(1 + z²/10) = .992073/1.384146 = .716740;

    spread z·sqrt(.16/10 + z²/400)/(1 + z²/10) = 1.959964·sqrt(.0256036)/1.384146 = .226577.
    """
    low, high = wilson_interval(8, 10)
    assert low == pytest.approx(0.716740 - 0.226577, abs=1e-5)
    assert high == pytest.approx(0.716740 + 0.226577, abs=1e-5)


@given(st.integers(1, 500), st.data(), st.floats(0.5, 0.999))
def test_wilson_equals_scipy(n, data, confidence):
    successes = data.draw(st.integers(0, n))
    expected = scipy.stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    assert wilson_interval(successes, n, confidence) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_wilson_of_nothing_is_everything_and_nonsense_is_refused():
    assert wilson_interval(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="successes"):
        wilson_interval(3, 2)
    with pytest.raises(ValueError, match="confidence"):
        wilson_interval(1, 2, 1.0)


def test_bootstrap_agrees_with_scipy():
    """Two estimators of the same percentiles, each with Monte Carlo error of about 0.01 standard deviations."""
    values = np.random.default_rng(3).choice([0.0, 0.5, 1.0], size=400, p=[0.3, 0.1, 0.6])
    mean, low, high = paired_bootstrap(values, 0.95, 20_000, seed=0)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert mean == pytest.approx(values.mean())
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.002)


def test_bootstrap_width_by_hand():
    """For a mean of n halves at 0 and 1 the standard error is .5/sqrt(n): ± 1.96·.5/sqrt(2500) = ± .0196."""
    _, low, high = paired_bootstrap([0.0, 1.0] * 1250, 0.95, 4000, seed=1)
    assert low == pytest.approx(0.5 - 0.0196, abs=0.0015)
    assert high == pytest.approx(0.5 + 0.0196, abs=0.0015)


def test_bootstrap_covers_the_truth_as_often_as_it_says():
    """300 samples of 120 Bernoulli(.7): a 90 % interval covers .7 in .9 ± 3·sqrt(.09/300) = .85 to .95 of them.

    The percentile interval of a lattice mean covers a little less than it says, hence .83.
    """
    generator = np.random.default_rng(7)
    covered = 0
    for trial in range(300):
        _, low, high = paired_bootstrap(generator.random(120) < 0.7, 0.9, 500, seed=trial)
        covered += low <= 0.7 <= high
    assert 0.83 <= covered / 300 <= 0.95


def test_pairing_is_kept():
    """Policies that differ by exactly 1 on each prompt: the difference has no spread, whatever the prompts' own is."""
    prompts = np.random.default_rng(0).normal(0, 100, size=50)
    assert paired_bootstrap((prompts + 1) - prompts, 0.95, 200, seed=0) == pytest.approx((1, 1, 1), abs=1e-9)


def test_bootstrap_depends_on_its_seed_alone_and_not_on_chunking(monkeypatch):
    from plumbline.tasks.statistics import intervals

    values = np.random.default_rng(2).normal(size=97)
    once = paired_bootstrap(values, 0.95, 1000, seed=5)
    assert paired_bootstrap(values, 0.95, 1000, seed=5) == once
    assert paired_bootstrap(values, 0.95, 1000, seed=6) != once
    monkeypatch.setattr(intervals, "_CELLS", 97 * 13)
    assert paired_bootstrap(values, 0.95, 1000, seed=5) == once


def test_one_value_has_no_interval():
    mean, low, high = paired_bootstrap([1.0], 0.95, 100, seed=0)
    assert mean == 1.0
    assert math.isnan(low)
    assert math.isnan(high)


@pytest.mark.parametrize("values", [[], [float("nan"), 1.0], [[1.0, 2.0]]])
def test_wrong_values_are_refused(values):
    with pytest.raises(ValueError, match="finite values"):
        paired_bootstrap(values, 0.95, 10, seed=0)
