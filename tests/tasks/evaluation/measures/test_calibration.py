import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plumbline.tasks.evaluation.measures.calibration import calibration
from plumbline.tasks.params.evaluation import EvaluationParams
from tests.support.world import in_world

PARAMS = in_world(EvaluationParams, bins=20)


def test_by_hand():
    """β = .5, margins 2·ln 3, -2·ln 3, 2·ln 3: p = ¾, ¼, ¾, so in both orders ¾ is right twice of three.

    ECE |2/3 - 3/4| = |1/3 - 1/4| = 1/12; Brier (2·(1/4)² + (3/4)²)/3 = 11/48; loss (2·-ln ¾ - ln ¼)/3.
    """
    margin = 2 * math.log(3)
    found = calibration(np.array([margin, -margin, margin]), 0.5, PARAMS)
    assert found["ece"] == pytest.approx(1 / 12)
    assert found["brier"] == pytest.approx(11 / 48)
    assert found["logistic_loss_nats"] == pytest.approx(-(2 * math.log(0.75) + math.log(0.25)) / 3)
    assert found["n"] == 3
    assert [row["n"] for row in found["bins"]] == [3, 3]


def test_no_preference_is_calibrated():
    """p = ½ everywhere: half of both orders is right by construction. Brier ¼, loss ln 2."""
    found = calibration(np.zeros(8), 0.1, PARAMS)
    assert found["ece"] == pytest.approx(0.0)
    assert found["brier"] == 0.25
    assert found["logistic_loss_nats"] == pytest.approx(math.log(2))


def test_a_policy_that_is_right_but_hardly_says_so_is_found_out():
    """p = 0.52 on pairs that are all labelled so: the confidence is 0.52, the frequency 1, the error 0.48.

    An odd number of bins would hold 0.52 and 0.48 in one, with mean ½ and frequency ½, and find 0.
    """
    margins = np.full(50, math.log(0.52 / 0.48))
    assert calibration(margins, 1.0, in_world(EvaluationParams))["ece"] == pytest.approx(0.48)
    with pytest.raises(ValueError, match="multiple of 2"):
        in_world(EvaluationParams, bins=15)


def test_a_policy_that_is_too_sure_is_found_out():
    """Labels drawn from sigmoid(m): β = 1 is calibrated, β = 5 is not."""
    generator = np.random.default_rng(0)
    strength = generator.normal(0, 1, size=20_000)
    signs = np.where(generator.random(20_000) < 1 / (1 + np.exp(-strength)), 1, -1)
    assert calibration(signs * strength, 1.0, PARAMS)["ece"] < 0.02
    assert calibration(signs * strength, 5.0, PARAMS)["ece"] > 0.15


@given(st.lists(st.floats(-20, 20), min_size=1, max_size=30))
def test_bins_are_symmetric_about_one_half(margins):
    rows = calibration(np.array(margins), 1.0, PARAMS)["bins"]
    assert sum(row["n"] for row in rows) == 2 * len(margins)
    assert sum(row["n"] * row["frequency"] for row in rows) == pytest.approx(len(margins))
    assert sum(row["n"] * row["confidence"] for row in rows) == pytest.approx(len(margins))


def test_no_pairs_give_null():
    assert calibration(np.array([]), 0.1, PARAMS)["ece"] is None
    assert calibration(np.ones(3), None, PARAMS)["ece"] is None
