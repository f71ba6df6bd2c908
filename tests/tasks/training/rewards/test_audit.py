from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plumbline.data_contracts.errors import ModelError, StageError
from plumbline.tasks.params.reward import RewardThresholds
from plumbline.tasks.statistics import wilson_interval
from plumbline.tasks.training.rewards.audit import audit_reward, score_pairs

PERMISSIVE = RewardThresholds(min_accuracy=0, max_ece=0.5, max_length_correlation=1, min_accuracy_shorter_chosen=0)


def audit(
    chosen: list[float],
    rejected: list[float],
    lengths: list[tuple[int, int]],
    clusters: list[str] | None = None,
    **thresholds: float,
) -> dict:
    """The audit of pairs that share no cluster, unless `clusters` says so."""
    texts = ["x" * one for one, _ in lengths], ["x" * other for _, other in lengths]
    own = [str(row) for row in range(len(chosen))]
    pairs = score_pairs(chosen, rejected, *texts, own if clusters is None else clusters)
    return audit_reward(pairs, PERMISSIVE.model_copy(update=thresholds))


def naive_confidence_ece(margins: list[float]) -> float:
    """Confidence max(p, 1 - p) against hits, 10 bins of equal width over [½, 1]."""
    bins: dict[int, list[tuple[float, float]]] = {}
    for margin in margins:
        p = 1 / (1 + math.exp(-margin))
        confidence, hit = max(p, 1 - p), 1.0 if margin > 0 else 0.0
        bins.setdefault(min(9, math.ceil((confidence - 0.5) * 20) - 1), []).append((confidence, hit))
    gaps = [abs(sum(hit - confidence for confidence, hit in rows)) for rows in bins.values()]
    return sum(gaps) / len(margins)


def test_accuracy_and_its_interval_by_hand() -> None:
    """Margins 1, 2, 0, -1: two right, one tie, so 2.5 of 4 = 0.625.

    Wilson with z = 1.96: centre (0.625 + 0.4802) / 1.9604 = 0.5638, half-width
    1.96·sqrt(0.625·0.375/4 + 0.0600)/1.9604 = 0.3442.
    """
    figures = audit([1, 2, 0, 0], [0, 0, 0, 1], [(2, 1)] * 4)["accuracy"]
    assert figures["value"] == 0.625
    assert figures["low"] == pytest.approx(0.2196, abs=1e-3)
    assert figures["high"] == pytest.approx(0.9080, abs=1e-3)


def test_pairs_of_a_cluster_are_not_taken_for_independent() -> None:
    """40 pairs, 30 right: each cluster of 10 is right or wrong as a whole, so that they are worth 4 pairs."""
    rewards, clusters = [1.0] * 30 + [-1.0] * 10, [str(row // 10) for row in range(40)]
    lengths = [(2, 1), (1, 2)] * 20
    alone = audit(rewards, [0.0] * 40, lengths)["accuracy"]
    found = audit(rewards, [0.0] * 40, lengths, clusters)
    together = found["accuracy"]
    assert (together["n"], together["clusters"], together["value"]) == (40, 4, 0.75)
    assert (alone["low"], alone["high"]) == wilson_interval(30, 40)
    assert (together["low"], together["high"]) == pytest.approx(wilson_interval(3, 4))
    assert found["length"]["accuracy_shorter_chosen"]["clusters"] == 4


def test_calibration_by_hand() -> None:
    """Ten pairs with p = 0.8 for the favourite, seven of them right.

    ECE = |0.7 - 0.8| = 0.1. Brier: 0.7·0.2² + 0.3·0.8² = 0.22. Log loss: -(0.7 ln 0.8 + 0.3 ln 0.2) = 0.6390.
    """
    margin = math.log(4)
    figures = audit([margin] * 7 + [0.0] * 3, [0.0] * 7 + [margin] * 3, [(2, 1)] * 10)["calibration"]
    assert figures["ece"] == pytest.approx(0.1)
    assert figures["brier"] == pytest.approx(0.22)
    assert figures["log_loss"] == pytest.approx(0.6390, abs=1e-4)
    low, high = figures["reliability"]
    assert (low["n"], low["confidence"], low["frequency"]) == (10, pytest.approx(0.2), pytest.approx(0.3))
    assert (high["n"], high["confidence"], high["frequency"]) == (10, pytest.approx(0.8), pytest.approx(0.7))


@pytest.mark.training
@given(st.lists(st.floats(-6, 6).filter(lambda margin: abs(margin) > 1e-3), min_size=1, max_size=60))
def test_ece_equals_the_naive_one_on_the_confidence(margins: list[float]) -> None:
    """Bins are closed above on (½, 1]; mirrored ones are closed below, which no drawn margin sits on but by chance."""
    edges = [math.log(edge / (1 - edge)) for edge in (0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)]
    inner = [margin for margin in margins if min(abs(abs(margin) - edge) for edge in edges) > 1e-9]
    if inner:
        found = audit(inner, [0.0] * len(inner), [(2, 1)] * len(inner))["calibration"]["ece"]
        assert found == pytest.approx(naive_confidence_ece(inner), abs=1e-9)


@pytest.mark.training
@given(st.lists(st.floats(-50, 50), min_size=1, max_size=30), st.floats(-100, 100))
def test_a_reward_has_no_origin(rewards: list[float], shift: float) -> None:
    """Adding a constant to all rewards changes neither accuracy nor calibration, beyond rounding."""
    zeros, lengths = [0.0] * len(rewards), [(2, 1)] * len(rewards)
    rewards = [round(reward, 3) for reward in rewards]
    one = audit(rewards, zeros, lengths)
    other = audit([reward + shift for reward in rewards], [shift] * len(rewards), lengths)
    assert other["calibration"]["brier"] == pytest.approx(one["calibration"]["brier"], abs=1e-9)
    assert other["calibration"]["log_loss"] == pytest.approx(one["calibration"]["log_loss"], abs=1e-9)


def test_a_calibrated_model_has_a_small_ece_and_an_overconfident_one_a_large() -> None:
    """20,000 outcomes drawn from p = sigmoid(margin); tripling the margins makes them overconfident."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1.5, 20_000)
    margins = np.where(rng.random(20_000) < 1 / (1 + np.exp(-logits)), logits, -logits)
    zeros, lengths = [0.0] * 20_000, [(2, 1)] * 20_000
    assert audit(margins.tolist(), zeros, lengths)["calibration"]["ece"] < 0.01
    assert audit((3 * margins).tolist(), zeros, lengths)["calibration"]["ece"] > 0.1


def test_a_model_that_only_counts_characters_is_found_out() -> None:
    """Rewards equal to lengths: correlations 1, every shorter chosen response missed, the longer always preferred."""
    lengths = [(5, 1), (9, 3), (8, 2), (2, 7)]
    found = audit(
        [float(one) for one, _ in lengths],
        [float(other) for _, other in lengths],
        lengths,
        max_length_correlation=0.5,
        min_accuracy_shorter_chosen=0.35,
    )
    length = found["length"]
    assert length["spearman"] == pytest.approx(1)
    assert length["pearson"] == pytest.approx(1)
    assert length["spearman_within_pairs"] == pytest.approx(1)
    assert length["longer_chosen"] == 0.75
    assert length["longer_preferred_by_model"] == 1.0
    assert length["accuracy_longer_chosen"]["value"] == 1.0
    assert length["accuracy_shorter_chosen"]["value"] == 0.0
    assert not found["passed"]
    assert [reason.split(":")[0].split(" 0.")[0] for reason in found["reasons"]] == [
        "reward follows length",
        "accuracy",
    ]
    assert "+1.000" in found["reasons"][0]


def test_spearman_with_ties_by_hand() -> None:
    """Rewards 2, 1 | 0, 1 have ranks 4, 2.5, 1, 2.5; lengths 3, 1 | 2, 4 have ranks 3, 1, 2, 4.

    Deviations (1.5, 0, -1.5, 0) and (0.5, -1.5, -0.5, 1.5): 1.5 / sqrt(4.5·5) = 0.3162.
    """
    assert audit([2, 1], [0, 1], [(3, 2), (1, 4)])["length"]["spearman"] == pytest.approx(1.5 / math.sqrt(22.5))


def test_no_correlation_where_nothing_varies() -> None:
    length = audit([1, 1], [1, 1], [(2, 2), (2, 2)])["length"]
    assert length["spearman"] is None
    assert length["longer_chosen"] is None
    assert length["accuracy_shorter_chosen"] == {"n": 0, "clusters": 0, "value": None, "low": None, "high": None}


def test_each_threshold_gives_its_reason() -> None:
    """2 of 4 right with margins ±4: accuracy 0.5, ECE |0.5 - sigmoid(4)| = 0.482."""
    found = audit([4, 4, 0, 0], [0, 0, 4, 4], [(2, 1), (1, 2)] * 2, min_accuracy=0.55, max_ece=0.15)
    assert not found["passed"]
    assert found["reasons"][0].startswith("accuracy 0.500 on 4 held-out pairs in 4 clusters: the lower end")
    assert found["reasons"][1] == "calibration error 0.482 is above 0.15 (max_ece)"
    assert audit([4, 4, 0, 0], [0, 0, 4, 4], [(2, 1), (1, 2)] * 2)["passed"]


def test_huge_margins_stay_finite() -> None:
    figures = audit([1e6, -1e6], [0, 0], [(2, 1)] * 2)["calibration"]
    assert figures["ece"] == pytest.approx(0.5)
    assert figures["log_loss"] == pytest.approx(5e5)


def test_no_pairs_and_rewards_that_are_no_numbers() -> None:
    with pytest.raises(StageError, match="found none"):
        score_pairs([], [], [], [], [])
    with pytest.raises(ModelError, match="NaN or infinity on 1 of 2"):
        score_pairs([1.0, math.nan], [0.0, 0.0], ["a", "b"], ["c", "d"], ["e", "f"])
