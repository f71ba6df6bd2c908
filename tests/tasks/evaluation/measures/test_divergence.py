import numpy as np
import pytest

from plumbline.tasks.evaluation.measures.divergence import divergence
from plumbline.tasks.models.divergence import SequenceDivergences
from plumbline.tasks.params.evaluation import EvaluationParams
from tests.support.world import in_world


def test_per_token_is_total_over_total():
    """Sums 6 and 1 nats over 3 and 4 tokens: 7/7 = 1 nat per token, 3.5 per sequence; not the mean of 2 and ¼."""
    sums = np.array([6.0, 1.0])
    found = divergence(SequenceDivergences(sums, sums, sums, np.array([3, 4])), in_world(EvaluationParams), seed=0)
    assert found["kl_nats_per_token"]["value"] == pytest.approx(1.0)
    assert found["kl_nats_per_sequence"]["value"] == 3.5
    assert found["samples_from_policy"] is True


def test_the_interval_per_token_equals_that_of_a_bootstrapped_ratio():
    """Naive: resample completions, divide the sums. Equal to the linearised interval within Monte Carlo error."""
    generator = np.random.default_rng(4)
    tokens = generator.integers(2, 30, size=400)
    sums = generator.gamma(2.0, 0.05, size=400) * tokens
    found = divergence(SequenceDivergences(sums, sums, sums, tokens), in_world(EvaluationParams), seed=0)[
        "kl_nats_per_token"
    ]
    rows = generator.integers(400, size=(4000, 400))
    low, high = np.quantile(sums[rows].sum(1) / tokens[rows].sum(1), [0.025, 0.975])
    assert (found["low"], found["high"]) == pytest.approx((low, high), rel=0.01)
