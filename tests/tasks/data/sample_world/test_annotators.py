import math
from random import Random

import pytest

from plumbline.tasks.data.sample_world.annotators import TEMPERATURES, judge, prefers_first


def test_probability_is_the_logistic_of_the_difference():
    """sigmoid(1 / 0.5) = 1 / (1 + e^-2) = 0.880797; equal golds give 0.5; the two sides add up to 1."""
    assert prefers_first(1.0, 0.0, 0.5) == pytest.approx(0.880797, abs=1e-6)
    assert prefers_first(0.3, 0.3, 0.2) == 0.5
    assert prefers_first(-1.0, 1.3, 0.4) + prefers_first(1.3, -1.0, 0.4) == pytest.approx(1.0)


def test_extreme_differences_do_not_overflow():
    assert prefers_first(1e6, -1e6, 1e-3) == 1.0


@pytest.mark.parametrize("annotator", sorted(TEMPERATURES))
@pytest.mark.parametrize("noise", [1.0, 2.0])
def test_labels_follow_bradley_terry(annotator, noise):
    """5,000 labels at a gold difference of 0.5: within 4 binomial standard deviations of sigmoid(0.5 / (tau noise))."""
    rng = Random(annotator)
    expected = 1 / (1 + math.exp(-0.5 / (TEMPERATURES[annotator] * noise)))
    rate = sum(judge(0.8, 0.3, annotator, noise, rng) for _ in range(5000)) / 5000
    assert abs(rate - expected) < 4 * math.sqrt(expected * (1 - expected) / 5000)
