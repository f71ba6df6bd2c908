from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plumbline.data_contracts.errors import RewardError
from plumbline.tasks.training.rewards.normalisation import Normaliser

VALUES = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20)


def test_reference_by_hand() -> None:
    """Of 1, 3, 5, 7 the mean is 4 and the population variance (9 + 1 + 1 + 9) / 4 = 5."""
    normaliser = Normaliser("reference", clip=None)
    normaliser.fit(np.array([1.0, 3.0, 5.0, 7.0]))
    assert normaliser.apply(np.array([4.0, 9.0])) == pytest.approx([0.0, 5 / 5**0.5])


@given(st.lists(VALUES, min_size=1, max_size=5))
def test_running_equals_all_values_at_once(batches: list[list[float]]) -> None:
    normaliser = Normaliser("running", clip=None)
    for batch in batches:
        normaliser.update(np.array(batch))
    everything = np.concatenate([np.array(batch) for batch in batches])
    assert normaliser.count == len(everything)
    assert normaliser.mean == pytest.approx(everything.mean(), abs=1e-9)
    assert normaliser.spread == pytest.approx(everything.std(), abs=1e-6)


def test_fit_forgets_what_was_met_before() -> None:
    normaliser = Normaliser("reference", clip=None)
    normaliser.fit(np.array([100.0, 300.0]))
    normaliser.fit(np.array([1.0, 3.0]))
    assert (normaliser.count, normaliser.mean, normaliser.spread, normaliser.largest) == (2, 2.0, 1.0, 3.0)


def test_clip_and_nan() -> None:
    normaliser = Normaliser("none", clip=2.0)
    assert normaliser.apply(np.array([-3.0, 1.5, 2.5])).tolist() == [-2.0, 1.5, 2.0]
    assert np.isnan(normaliser.apply(np.array([np.nan]))[0])


@pytest.mark.parametrize("value", [0.0, 0.1, -7.3, 1e6])
def test_no_spread_only_centres(value: float) -> None:
    """0.1 seven times sums to another float than 0.7: a spread of 1e-17 that must not be divided by."""
    normaliser = Normaliser("reference", clip=None)
    normaliser.fit(np.full(7, value))
    assert normaliser.flat
    assert normaliser.apply(np.array([value + 0.5])) == pytest.approx([0.5])


def test_small_spread_is_spread() -> None:
    normaliser = Normaliser("reference", clip=None)
    normaliser.fit(np.array([0.0, 2e-6]))
    assert not normaliser.flat
    assert normaliser.apply(np.array([0.0, 2e-6])) == pytest.approx([-1.0, 1.0])


def test_nothing_measured() -> None:
    normaliser = Normaliser("reference", clip=None)
    assert not normaliser.flat
    assert np.isnan(normaliser.apply(np.array([np.nan]))).all()
    with pytest.raises(RewardError, match=r"a mean and spread to normalise by \(reference\), found none\. Call `cali"):
        normaliser.apply(np.array([1.0]))


def test_state_goes_through_json_exactly() -> None:
    normaliser, other = Normaliser("running", clip=5.0), Normaliser("running", clip=5.0)
    normaliser.update(np.array([0.1, 0.2, 0.7]))
    other.restore(json.loads(json.dumps(normaliser.state())))
    assert other == normaliser
    for one in (normaliser, other):
        one.update(np.array([1 / 3]))
    assert other == normaliser


@pytest.mark.parametrize("state", [{}, {"count": 1}, {"count": None, "mean": 0, "m2": 0, "largest": 0}])
def test_a_foreign_state_is_refused(state: dict[str, object]) -> None:
    with pytest.raises(RewardError, match="Expected the state of a normaliser"):
        Normaliser("running", clip=None).restore(state)
