import numpy as np
import pytest

from plumbline.tasks.evaluation.measures.preference import PairLogps, preference_accuracy
from plumbline.tasks.params.evaluation import EvaluationParams
from plumbline.tasks.statistics import wilson_interval
from tests.support.world import in_world

PARAMS = in_world(EvaluationParams)


def logps(margins, chosen_tokens, rejected_tokens, clusters=None):
    """Margins put on the chosen responses by the policy; a common offset must cancel. Clusters of one unless given."""
    margins = np.asarray(margins, dtype=float)
    offset = np.full(margins.shape, -7.0)
    tokens = np.asarray(chosen_tokens), np.asarray(rejected_tokens)
    clusters = np.array(range(len(margins)) if clusters is None else clusters, dtype=str)
    return PairLogps(margins + offset, offset, offset, offset, *tokens, clusters)


def test_margin_by_hand():
    """(-3 - -5) - (-4 - -1) = 2 + 3 = 5: the policy raised the chosen by 2 nats and lowered the rejected by 3."""
    one = np.array
    found = PairLogps(one([-3.0]), one([-4.0]), one([-5.0]), one([-1.0]), one([2]), one([2]), one(["a"])).margins()
    assert found.tolist() == [5.0]


def test_accuracy_by_hand():
    """Margins 2, -1, 0, 3: hits 1, 0, ½, 1, so 2.5 of 4.

    Chosen shorter in pairs 0 and 1: (1 + 0)/2; longer in pair 3: 1; pair 2 is of equal length. Balanced: ¾.
    """
    found = preference_accuracy(logps([2, -1, 0, 3], [1, 2, 4, 9], [5, 6, 4, 2]), PARAMS)
    low, high = wilson_interval(2.5, 4)
    assert found["accuracy"] == {"value": 0.625, "low": low, "high": high, "n": 4, "clusters": 4}
    assert found["accuracy_chosen_shorter"]["value"] == 0.5
    assert found["accuracy_chosen_shorter"]["n"] == 2
    assert (found["accuracy_chosen_longer"]["value"], found["accuracy_chosen_longer"]["n"]) == (1.0, 1)
    assert found["accuracy_length_balanced"] == 0.75
    assert found["margin_nats"]["mean"] == 1.0
    assert found["accuracy_gold"] is None


def test_pairs_of_a_cluster_are_not_taken_for_independent():
    """30 of 40 right, each cluster of 10 as a whole: an interval as of 3 of 4, also against the truth and by length."""
    margins, clusters = np.repeat([1.0, -1.0], [30, 10]), np.repeat(["a", "b", "c", "d"], 10)
    found = preference_accuracy(logps(margins, np.full(40, 2), np.full(40, 5), clusters), PARAMS, [1.0] * 40)
    low, high = wilson_interval(3, 4, PARAMS.confidence)
    expected = {"value": 0.75, "low": pytest.approx(low), "high": pytest.approx(high), "n": 40, "clusters": 4}
    for name in ("accuracy", "accuracy_gold", "accuracy_chosen_shorter"):
        assert found[name] == expected
    assert found["accuracy_chosen_longer"] == {"value": None, "low": None, "high": None, "n": 0, "clusters": 0}


def test_a_reward_that_only_counts_tokens_is_found_out():
    """Margin = length difference, the longer chosen in 80 of 100: accuracy .8, but 1 and 0 by side, ½ balanced."""
    chosen = np.repeat([9, 3], [80, 20])
    rejected = np.repeat([3, 9], [80, 20])
    found = preference_accuracy(logps(chosen - rejected, chosen, rejected), PARAMS)
    assert found["accuracy"]["value"] == 0.8
    assert found["accuracy_length_balanced"] == 0.5
    assert found["margin_nats"]["length_correlation"] == pytest.approx(1.0)


def test_accuracy_against_the_truth_by_hand():
    """Margins 2, -1, 3 against gold margins 1, -4, 0: right, right (label was wrong), left out: 2 of 2."""
    found = preference_accuracy(logps([2, -1, 3], [1, 1, 1], [1, 1, 1]), PARAMS, [1.0, -4.0, 0.0])
    assert found["accuracy"]["value"] == pytest.approx(2 / 3)
    assert found["accuracy_gold"]["value"] == 1.0
    assert found["accuracy_gold"]["n"] == 2


def test_equal_policies_are_at_chance():
    found = preference_accuracy(logps(np.zeros(10), np.arange(10), np.full(10, 5)), PARAMS)
    assert found["accuracy"]["value"] == 0.5
    assert found["margin_nats"]["length_correlation"] is None
