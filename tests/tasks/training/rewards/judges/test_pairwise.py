from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plumbline.data_contracts.errors import JudgeError
from plumbline.tasks.training.rewards.judges.pairwise import from_scores, from_wins


def test_scores_by_hand() -> None:
    """1, 3, 3, 0: the two 3s share places 1 and 2, then 1 is third. sigmoid(ln 3) = ¾ at a margin of 1 and a
    temperature of 1 / ln 3."""
    judgement = from_scores([1, 3, 3, 0], temperature=1 / math.log(3))
    assert judgement.ranks.tolist() == [3, 1.5, 1.5, 4]
    assert judgement.wins[0, 3] == pytest.approx(0.75)
    assert judgement.wins[3, 0] == pytest.approx(0.25)
    assert judgement.wins[1, 2] == 0.5


def test_without_temperature_scores_only_order() -> None:
    assert from_scores([1, 2, 2]).wins.tolist() == [[0.5, 0, 0], [1, 0.5, 0.5], [1, 0.5, 0.5]]


@given(st.lists(st.floats(-1e4, 1e4), max_size=8), st.sampled_from([None, 0.01, 1.0]))
def test_wins_mirror_and_follow_the_ranks(scores: list[float], temperature: float | None) -> None:
    judgement = from_scores(scores, temperature)
    assert np.allclose(judgement.wins + judgement.wins.T, 1)
    assert (np.diag(judgement.wins) == 0.5).all()
    better = judgement.ranks[:, None] < judgement.ranks[None, :]
    assert (judgement.wins[better] >= 0.5).all()


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_a_score_that_is_not_finite(score: float) -> None:
    with pytest.raises(JudgeError, match=r"Expected finite scores to judge by, found \[.*\] among 2"):
        from_scores([score, 1])


def test_wins_are_ranked_by_their_sum_with_ties() -> None:
    """A rock-paper-scissors of three, of which each wins one: all tie. A fourth that loses to all is last."""
    wins = np.full((4, 4), 0.5)
    for winner, loser in [(0, 1), (1, 2), (2, 0), (0, 3), (1, 3), (2, 3)]:
        wins[winner, loser], wins[loser, winner] = 1, 0
    assert from_wins(wins).ranks.tolist() == [2, 2, 2, 4]


def test_equal_sums_in_another_order_of_addition_tie() -> None:
    """The first two rows hold the same numbers in another order, whose float64 sums differ."""
    wins = np.full((5, 5), 0.5)
    values = {(0, 2): 0.1, (0, 3): 0.2, (0, 4): 0.4, (1, 2): 0.4, (1, 3): 0.1, (1, 4): 0.2}
    for (i, j), value in values.items():
        wins[i, j], wins[j, i] = value, 1 - value
    sums = wins.sum(axis=1)
    assert sums[0] != sums[1]
    assert from_wins(wins).ranks[0] == from_wins(wins).ranks[1]


@pytest.mark.parametrize(
    "wins",
    [
        [[0.5, 0.7], [0.4, 0.5]],
        [[0.4, 1.0], [0.0, 0.5]],
        [[0.5, 1.2], [-0.2, 0.5]],
        [[0.5, math.nan], [math.nan, 0.5]],
        [[0.5, 1.0]],
        [0.5],
    ],
)
def test_what_are_no_probabilities(wins: list[list[float]]) -> None:
    with pytest.raises(JudgeError, match=r"P\(row beats column\) as a square matrix"):
        from_wins(np.array(wins))
