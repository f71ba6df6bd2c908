import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plumbline.data_contracts.errors import ModelError
from plumbline.data_contracts.records import Message
from plumbline.tasks.evaluation.measures.win_rate import Pointwise, judge_both_positions, length_controlled, win_rate
from plumbline.tasks.params.evaluation import EvaluationParams
from tests.support.world import in_world

PARAMS = in_world(EvaluationParams, resamples=500)
PROMPTS = [(Message(role="user", content=str(number)),) for number in range(4)]
LENGTH = Pointwise(lambda prompts, responses: [float(len(text)) for text in responses], "length")


def expit(value):
    return 1 / (1 + np.exp(-value))


def test_win_rate_by_hand():
    """Scores 3 > 1, 1 < 2, 2 = 2, 4 > 1: outcomes 1, 0, ½, 1, so 2.5 / 4 and one tie; a score agrees with itself."""
    judged = judge_both_positions(LENGTH, PROMPTS, ["aaa", "a", "aa", "aaaa"], ["b", "bb", "bb", "b"])
    assert judged.outcomes.tolist() == [1, 0, 0.5, 1]
    found = win_rate(judged, np.zeros(4), PARAMS, seed=0)
    assert found["value"] == 0.625
    assert found["ties"] == 1
    assert found["swap_consistency"] == 1.0
    assert found["low"] <= 0.625 <= found["high"]


def test_a_judge_that_always_prefers_the_first_is_found_out():
    """Forward says 1 for the policy, backward 1 for the reference: ½ on average, and never the same answer twice."""
    judged = judge_both_positions(lambda prompts, first, second: [1.0] * len(prompts), PROMPTS, ["x"] * 4, ["y"] * 4)
    found = win_rate(judged, np.zeros(4), PARAMS, seed=0)
    assert found["value"] == 0.5
    assert found["swap_consistency"] == 0.0


def test_a_judge_with_a_leaning_is_averaged_out():
    """Truth .6 for the policy, +.3 for whoever comes first: forward .9, backward 1 - (.4 + .3) = .3, mean .6.

    Its two answers point to different sides, so it is inconsistent everywhere.
    """

    def leaning(prompts, first, second):
        return [0.9 if text == "policy" else 0.7 for text in first]

    judged = judge_both_positions(leaning, PROMPTS, ["policy"] * 4, ["reference"] * 4)
    assert judged.outcomes == pytest.approx([0.6] * 4)
    assert not judged.consistent.any()


@pytest.mark.training
@given(st.lists(st.tuples(st.text(max_size=6), st.text(max_size=6)), min_size=1, max_size=20))
def test_swapping_the_policies_mirrors_the_win_rate(texts):
    prompts = [(Message(role="user", content=str(number)),) for number in range(len(texts))]
    policy, reference = map(list, zip(*texts, strict=True))
    forward = judge_both_positions(LENGTH, prompts, policy, reference).outcomes
    backward = judge_both_positions(LENGTH, prompts, reference, policy).outcomes
    assert (forward + backward == 1).all()


def test_a_response_is_scored_once_in_both_positions():
    calls = []

    def score(prompts, responses):
        calls.extend(responses)
        return [float(len(text)) for text in responses]

    judge = Pointwise(score, "counted")
    judge_both_positions(judge, PROMPTS, ["aaa", "a", "aa", "a"], ["b", "a", "bb", "b"])
    assert len(calls) == 7  # eight responses, of which prompt 1 has the same text twice


@pytest.mark.parametrize("bad", [[1.0], [1.0, float("nan"), 2.0, 3.0], [float("inf")] * 4])
def test_a_broken_score_is_refused(bad):
    with pytest.raises(ModelError, match="the reward model"):
        Pointwise(lambda prompts, responses: bad, "the reward model").scores(PROMPTS, ["a"] * 4)


def test_a_judge_that_returns_no_probability_is_refused():
    with pytest.raises(ModelError, match="probabilities"):
        judge_both_positions(lambda prompts, first, second: [2.0] * 4, PROMPTS, ["a"] * 4, ["b"] * 4)


def naive_ridge_logit(feature, outcomes):
    """Minimise the ridged negative log-likelihood with scipy's general optimiser."""
    import scipy.optimize

    def objective(coefficients):
        z = coefficients[0] + coefficients[1] * feature
        likelihood = np.sum(outcomes * np.logaddexp(0, -z) + (1 - outcomes) * np.logaddexp(0, z))
        return likelihood + 0.005 * np.sum(coefficients**2)

    return scipy.optimize.minimize(objective, np.zeros(2), method="BFGS", options={"gtol": 1e-8}).x


def test_length_control_equals_a_general_optimiser_with_ties():
    generator = np.random.default_rng(0)
    difference = generator.normal(3, 10, size=300)
    outcomes = generator.choice([0.0, 0.5, 1.0], size=300, p=[0.3, 0.2, 0.5])
    found = length_controlled(outcomes, difference, 0.95)
    expected = naive_ridge_logit(np.tanh(difference / difference.std()), outcomes)
    assert found["value"] == pytest.approx(expit(expected[0]), abs=1e-6)


def test_length_control_takes_out_what_length_explains():
    """Outcomes drawn from sigmoid(0 + 2·tanh(Δ/sd)) with Δ mostly positive: raw well above ½, controlled at ½."""
    generator = np.random.default_rng(1)
    difference = generator.normal(10, 10, size=4000)
    outcomes = (generator.random(4000) < expit(2 * np.tanh(difference / difference.std()))).astype(float)
    found = length_controlled(outcomes, difference, 0.95)
    assert outcomes.mean() > 0.7
    assert found["low"] < 0.5 < found["high"]
    assert found["value"] == pytest.approx(0.5, abs=0.04)


@pytest.mark.training
def test_length_control_interval_equals_that_of_the_bootstrap():
    generator = np.random.default_rng(2)
    difference = generator.normal(2, 8, size=500)
    outcomes = (generator.random(500) < expit(0.5 + np.tanh(difference / 8))).astype(float)
    found = length_controlled(outcomes, difference, 0.9)
    feature = np.tanh(difference / difference.std())
    rows = generator.integers(500, size=(200, 500))
    fits = [expit(naive_ridge_logit(feature[row], outcomes[row])[0]) for row in rows]
    low, high = np.quantile(fits, [0.05, 0.95])
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=0.015)


def test_without_length_differences_the_controlled_rate_is_the_raw_one():
    """The logistic regression has its intercept alone: sigmoid of the logit of the mean, 30 of 100 (ridge < 1e-4)."""
    found = length_controlled(np.repeat([1.0, 0.0], [30, 70]), np.zeros(100), 0.95)
    assert found["value"] == pytest.approx(0.3, abs=2e-4)


def test_a_clean_sweep_stays_finite():
    found = length_controlled(np.ones(50), np.arange(50.0), 0.95)
    assert 0.9 < found["low"] <= found["value"] <= found["high"] <= 1.0


def test_no_prompts_give_null():
    assert length_controlled(np.array([]), np.array([]), 0.95) == {"value": None, "low": None, "high": None, "n": 0}
