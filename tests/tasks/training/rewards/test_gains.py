from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import choix
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import rankdata

from plumbline.data_contracts.errors import JudgeError
from plumbline.tasks.models.judging import Floats, GainFunction, Judgement
from plumbline.tasks.params.gains import GainKind, GainParams
from plumbline.tasks.training.rewards.gains import build_gains, strengths
from plumbline.tasks.training.rewards.judges.pairwise import from_scores, from_wins

KINDS: tuple[GainKind, ...] = ("winner_takes_all", "schedule", "dcg", "bradley_terry")
SCORES = st.lists(st.integers(-3, 3), min_size=2, max_size=8)


def from_ranks(ranks: Sequence[float]) -> Judgement:
    """The judgement of a judge that only orders; ties equal."""
    return from_scores([-rank for rank in ranks])


def gains(judgement: Judgement, kind: GainKind, **params: Any) -> list[float]:
    function: GainFunction = build_gains(GainParams(kind=kind, **params), 0.1)
    (row,) = function([judgement], len(judgement.ranks)).values
    return [float(value) for value in row]


def test_winner_takes_all_and_winners_share() -> None:
    assert gains(from_ranks([2, 1, 3]), "winner_takes_all") == [0, 1, 0]
    assert gains(from_ranks([1.5, 3, 1.5]), "winner_takes_all") == [0.5, 0, 0.5]


def test_schedule_by_hand() -> None:
    """Places 2 and 3 of (1, 0.6, 0.3, 0) are worth 0.45 each where tied; the last two 0.15."""
    assert gains(from_ranks([3, 1, 4, 2]), "schedule") == [0.3, 1.0, 0.0, 0.6]
    assert gains(from_ranks([2.5, 1, 4, 2.5]), "schedule") == pytest.approx([0.45, 1.0, 0.0, 0.45])
    assert gains(from_ranks([1, 2, 3.5, 3.5]), "schedule") == pytest.approx([1.0, 0.6, 0.15, 0.15])
    assert gains(from_ranks([1, 1, 1, 1]), "schedule") == pytest.approx([0.475] * 4)


def test_a_schedule_is_read_evenly_for_other_numbers_of_candidates() -> None:
    """Three places lie at 0, ½ and 1 of the curve 1, 0.6, 0.3, 0, whose middle is (0.6 + 0.3) / 2; seven places lie at
    every sixth: each listed one and the middles between them."""
    assert gains(from_ranks([1, 2, 3]), "schedule") == pytest.approx([1, 0.45, 0])
    assert gains(from_ranks([2, 1]), "schedule") == [0, 1]
    assert gains(from_ranks(range(1, 8)), "schedule") == pytest.approx([1, 0.8, 0.6, 0.45, 0.3, 0.15, 0])


def test_dcg_by_hand() -> None:
    """1 / log2(2) = 1 and 1 / log2(3) = 0.63093: shares of 1.63093 are 0.613147 and 0.386853."""
    assert gains(from_ranks([2, 1]), "dcg") == pytest.approx([0.386853, 0.613147], abs=1e-6)
    assert sum(gains(from_ranks([2, 1, 3, 4, 5]), "dcg")) == pytest.approx(1)
    assert gains(from_ranks([1.5, 1.5]), "dcg") == pytest.approx([0.5, 0.5])


def test_bradley_terry_of_two_by_hand() -> None:
    """One vote, no noise: θ and -θ with 1 - s(2θ) = θ / τ². At θ = ln(3) / 2, s(2θ) = ¾, so τ² = 4θ = 2 ln 3."""
    theta = math.log(3) / 2
    found = strengths(np.array([[[0.5, 1], [0, 0.5]]]), 0.0, (2 * math.log(3)) ** 0.5)
    assert found[0].tolist() == pytest.approx([theta, -theta], abs=1e-7)


def test_bradley_terry_of_two_with_noise_by_hand() -> None:
    """d log q = (1 - 2ε) s (1 - s) / (ε + (1 - 2ε) s) must equal θ / τ². At ε = 0.1 and s = ¾, that is
    0.8 · 0.1875 / 0.7 = 3/14, so τ² = (14/3) · ln(3) / 2."""
    theta = math.log(3) / 2
    found = strengths(np.array([[[0.5, 1], [0, 0.5]]]), 0.1, (14 / 3 * theta) ** 0.5)
    assert found[0].tolist() == pytest.approx([theta, -theta], abs=1e-7)


def random_wins(seed: int, candidates: int) -> Floats:
    draw = np.random.default_rng(seed)
    upper = np.triu(draw.random((candidates, candidates)), 1)
    return upper + np.tril(1 - upper.T, -1) + 0.5 * np.eye(candidates)


@pytest.mark.parametrize(("noise", "prior_std"), [(0.0, 1.0), (0.1, 1.0), (0.3, 0.7), (0.45, 1.0), (0.2, 3.0)])
@pytest.mark.parametrize("candidates", [2, 4, 8])
def test_equals_scipy_on_the_negative_log_posterior(noise: float, prior_std: float, candidates: int) -> None:
    wins = np.stack([random_wins(seed, candidates) for seed in range(3)] + [from_ranks(range(candidates)).wins])

    def naive(theta: Floats, votes: Floats) -> float:
        total = float((theta**2).sum()) / (2 * prior_std**2)
        for i in range(candidates):
            for j in range(candidates):
                if i != j:
                    total -= votes[i, j] * math.log(noise + (1 - 2 * noise) / (1 + math.exp(theta[j] - theta[i])))
        return total

    found = strengths(wins, noise, prior_std)
    for votes, theta in zip(wins, found, strict=True):
        best = minimize(naive, np.zeros(candidates), args=(votes,), method="BFGS", options={"gtol": 1e-7})
        assert theta == pytest.approx(best.x, abs=2e-4)
        assert naive(theta, votes) <= best.fun + 1e-9


def test_equals_choix_without_noise() -> None:
    """choix penalises by alpha · Σθ²: a normal prior of variance 1 / (2 alpha)."""
    outcomes = [(0, 1), (0, 2), (2, 1), (3, 0), (3, 1), (2, 3)]
    wins = np.full((4, 4), 0.5)
    for winner, loser in outcomes:
        wins[winner, loser], wins[loser, winner] = 1, 0
    theirs = choix.opt_pairwise(4, outcomes, alpha=0.5, tol=1e-10)
    assert strengths(wins[None], 0.0, 1.0)[0] == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_a_clean_sweep_stays_finite(noise: float) -> None:
    theta = strengths(from_ranks(range(8)).wins[None], noise, 10.0)[0]
    assert np.isfinite(theta).all()
    assert (np.diff(theta) < 0).all()


def test_a_noisier_judge_moves_less() -> None:
    wins = from_ranks([1, 2, 3, 4]).wins[None]
    spreads = [float(np.ptp(strengths(wins, noise, 1.0))) for noise in (0, 0.1, 0.2, 0.3, 0.4, 0.499)]
    assert spreads == sorted(spreads, reverse=True)
    assert spreads[-1] < 0.02


def test_an_upset_is_forgiven_by_a_noisy_judge() -> None:
    """A beats B and C, B beats C and D, C beats D, but D beats A. Without noise A and B, two wins each, are equal. With
    noise A's loss to D, who lost to all others, is likelier an error than B's loss to A."""
    wins = from_ranks([1, 2, 3, 4]).wins.copy()
    wins[0, 3], wins[3, 0] = 0, 1
    exact, noisy = (strengths(wins[None], noise, 3.0)[0] for noise in (0.0, 0.2))
    assert exact[0] == pytest.approx(exact[1])
    assert noisy[0] > noisy[1] + 0.05


@given(SCORES, st.randoms(use_true_random=False), st.sampled_from(KINDS), st.sampled_from([None, 0.5]))
@settings(max_examples=60, deadline=None)
def test_candidates_in_another_order_gain_the_same(
    scores: list[int], random: Any, kind: GainKind, temperature: float | None
) -> None:
    order = list(range(len(scores)))
    random.shuffle(order)
    found = gains(from_scores(scores, temperature), kind)
    moved = gains(from_scores([scores[row] for row in order], temperature), kind)
    assert moved == pytest.approx([found[row] for row in order], abs=1e-6)


@given(SCORES, st.sampled_from(KINDS), st.sampled_from([0.0, 0.1, 0.3, 0.45]), st.sampled_from([None, 1.0]))
@settings(max_examples=80, deadline=None)
def test_a_better_rank_never_gains_less(
    scores: list[int], kind: GainKind, noise: float, temperature: float | None
) -> None:
    judgement = from_scores(scores, temperature)
    found = np.array(gains(judgement, kind, noise=noise))
    order = np.argsort(judgement.ranks)
    assert (np.diff(found[order]) <= 1e-9).all()
    assert len({round(value, 8) for value in found}) <= len(set(scores)), "tied candidates gain the same"


@given(st.integers(0, 10_000), st.integers(2, 6))
@settings(max_examples=40, deadline=None)
def test_strengths_order_as_the_sums_of_wins_do_without_noise(seed: int, candidates: int) -> None:
    judgement = from_wins(random_wins(seed, candidates))
    assert rankdata(-strengths(judgement.wins[None], 0.0, 1.0)[0]).tolist() == judgement.ranks.tolist()


def test_groups_without_a_judgement_and_groups_all_tied_are_counted() -> None:
    judgements = [from_ranks([1, 2]), None, from_ranks([1, 1]), None]
    for kind in KINDS:
        found = build_gains(GainParams(kind=kind), 0.1)(judgements, 2)
        assert found.counts == {"groups": 4, "unjudged": 2, "tied": 1}
        assert np.isnan(found.values).tolist() == [[False] * 2, [True] * 2, [False] * 2, [True] * 2]
        assert found.values[2, 0] == found.values[2, 1]


def test_nothing_judged() -> None:
    found = build_gains(GainParams(), 0.1)([None], 3)
    assert np.isnan(found.values).all()
    assert found.values.shape == (1, 3)
    assert build_gains(GainParams(), 0.1)([], 3).values.shape == (0, 3)


HALVES = np.full((2, 2), 0.5)


@pytest.mark.parametrize(
    "judgement",
    [
        from_ranks([1, 2, 3]),
        Judgement(np.array([1.0, np.nan]), HALVES),
        Judgement(np.array([1.0, 2.0]), np.full((2, 2), np.nan)),
        Judgement(np.array([1.0, 2.0]), np.full((2, 2), 1.5)),
        Judgement(np.array([1.0, 2.0]), np.full((3, 3), 0.5)),
    ],
)
def test_a_judgement_that_is_none_is_an_error(judgement: Judgement) -> None:
    with pytest.raises(JudgeError, match="Expected judgements of 2 candidates with finite ranks and wins in"):
        build_gains(GainParams(), 0.1)([judgement], 2)


def test_bradley_terry_needs_a_noise() -> None:
    with pytest.raises(JudgeError, match="by the judge's noise, which was not measured"):
        build_gains(GainParams(kind="bradley_terry"), None)
    with pytest.raises(JudgeError, match=r"found a noise of 0\.5: its answers say nothing"):
        build_gains(GainParams(kind="bradley_terry"), 0.5)
    assert build_gains(GainParams(kind="bradley_terry", noise=0.2), None).noise == 0.2
    assert build_gains(GainParams(kind="bradley_terry", noise=0.2), 0.5).noise == 0.2
    assert build_gains(GainParams(kind="dcg"), None)([from_ranks([1, 2])], 2).counts["groups"] == 1


def test_the_digest_names_kind_settings_and_noise() -> None:
    made = [GainParams(kind="dcg"), GainParams(kind="schedule"), GainParams(kind="schedule", schedule=(1, 0))]
    digests = [build_gains(params, 0.1).digest for params in made] + [build_gains(made[0], 0.2).digest]
    assert len(set(digests)) == 4
