from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from plumbline.tasks.training.finetuning.grpo.groups import Scale, advantages, unjudged, without_spread

NAN = np.nan


def test_group_advantages_by_hand() -> None:
    """Gains 1, 0.6, 0.3, 0: mean 0.475, deviations 0.525, 0.125, -0.175, -0.475, sum of squares 0.5475, variance
    with Bessel's correction 0.1825, deviation 0.42720; 0.525 / (0.42720 + 1e-4) = 1.22866 and so on."""
    found = advantages(np.array([[1.0, 0.6, 0.3, 0.0]]), "group")
    assert found[0] == pytest.approx([1.228647, 0.292535, -0.409549, -1.111633], abs=1e-5)


def test_batch_advantages_divide_by_one_deviation() -> None:
    """Rewards 0, 2 and 4, 4: group means 1 and 4; of all four the mean is 2.5, the squares 6.25, 0.25, 2.25, 2.25 sum
    to 11, variance 11/3, deviation 1.914854: advantages ∓1 / 1.914954 and 0."""
    found = advantages(np.array([[0.0, 2.0], [4.0, 4.0]]), "batch")
    assert found == pytest.approx(np.array([[-0.522206, 0.522206], [0.0, 0.0]]), abs=1e-6)


def test_none_only_centres() -> None:
    assert advantages(np.array([[1.0, 0.0, 0.5]]), "none").tolist() == [[0.5, -0.5, 0.0]]


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_a_group_without_a_judgement_has_no_advantage_and_no_part_in_the_others(scale: Scale) -> None:
    judged = np.array([[1.0, 0.0], [0.0, 3.0]])
    with_gap = np.vstack([judged, [[NAN, NAN]]])
    found = advantages(with_gap, scale)
    assert found[2].tolist() == [0.0, 0.0]
    assert np.array_equal(found[:2], advantages(judged, scale))


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_nothing_judged_or_nothing_to_tell_apart_gives_zeros(scale: Scale) -> None:
    assert advantages(np.full((2, 3), NAN), scale).tolist() == [[0.0] * 3] * 2
    assert advantages(np.full((2, 3), 0.7), scale) == pytest.approx(np.zeros((2, 3)), abs=1e-9)


def test_processes_that_reduce_share_their_deviation() -> None:
    """Two processes with a group each: summed statistics give what one process with both groups finds."""
    both = np.array([[0.0, 2.0, 1.0], [4.0, 1.0, 1.0]])
    halves = [both[:1], both[1:]]

    def summed(first: np.ndarray) -> np.ndarray:
        mean = both.mean()
        return np.array([both.sum(), both.size]) if len(first) == 2 else np.array([((both - mean) ** 2).sum()])

    found = np.vstack([advantages(half, "batch", summed) for half in halves])
    assert found == pytest.approx(advantages(both, "batch"), abs=1e-12)


@given(arrays(np.float64, (3, 4), elements=st.floats(-5, 5)))
def test_the_formulas_are_those_of_trl(rewards: np.ndarray) -> None:
    """TRL 1.16, `_generate_and_score_completions`, aggregation sum_then_normalize, in its own operations."""
    from trl.trainer.utils import nanstd

    flat = torch.tensor(rewards).view(-1)
    centred = flat - flat.view(-1, 4).nanmean(dim=1).repeat_interleave(4)
    by_group = centred / (nanstd(flat.view(-1, 4), dim=1).repeat_interleave(4) + 1e-4)
    by_batch = centred / (nanstd(flat) + 1e-4)
    assert advantages(rewards, "group").reshape(-1) == pytest.approx(by_group.numpy(), abs=1e-6, rel=1e-6)
    assert advantages(rewards, "batch").reshape(-1) == pytest.approx(by_batch.numpy(), abs=1e-6, rel=1e-6)


def test_groups_without_spread_and_without_judgement_are_different_things() -> None:
    rewards = np.array([[0.5, 0.5 + 1e-12], [0.5, 0.6], [NAN, NAN]])
    assert without_spread(rewards).tolist() == [True, False, False]
    assert unjudged(rewards).tolist() == [False, False, True]
