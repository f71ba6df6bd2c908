from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plumbline.data_contracts.errors import RewardError
from plumbline.tasks.params.on_policy import ShapingParams
from plumbline.tasks.training.finetuning.ppo.rewards import shape_rewards


def naive_rewards(
    scores: list[float],
    logps: list[list[float]],
    reference: list[list[float]],
    finished: list[bool],
    beta: float,
    params: ShapingParams,
) -> list[list[float]]:
    """One response, one token at a time."""
    shaped = []
    for score, own, other, ended in zip(scores, logps, reference, finished, strict=True):
        if params.clip is not None:
            score = min(max(score, -params.clip), params.clip)
        if not ended and params.missing_eos == "replace":
            score = -params.missing_eos_penalty
        if not ended and params.missing_eos == "subtract":
            score -= params.missing_eos_penalty
        row = []
        for logp, ref_logp in zip(own, other, strict=True):
            kl = logp - ref_logp
            if params.kl_estimator == "k3":
                kl += math.exp(ref_logp - logp) - 1
            row.append(-beta * kl)
        row[-1] += score
        shaped.append(row)
    return shaped


def shaped(
    scores: list[float], lengths: list[int], finished: list[bool], beta: float = 0.1, seed: int = 0, **changes: Any
) -> tuple[Any, list[list[float]]]:
    """Shaped rewards of random log-probabilities with NaN behind the end, and what the naive loop gives."""
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    logps = -torch.rand((2, *mask.shape), generator=torch.Generator().manual_seed(seed)) * 3
    logps = logps.masked_fill(~mask, float("nan"))
    params = ShapingParams(**changes)
    result = shape_rewards(torch.tensor(scores), *logps, mask, torch.tensor(finished), beta=beta, params=params)
    own, other = ([row[:length].tolist() for row, length in zip(each, lengths, strict=True)] for each in logps)
    return result, naive_rewards(scores, own, other, finished, beta, params)


def test_two_responses_by_hand() -> None:
    """β ½. Row 1 ends: log-ratios 1, -2, so -½, +1, and the score 3 on token 2. Row 2 does not end: one token with
    log-ratio 0.4, -0.2, and -1 in place of its score of 5."""
    logps = torch.tensor([[-1.0, -4.0, 7.0], [-0.6, 7.0, 7.0]])
    reference = torch.tensor([[-2.0, -2.0, 7.0], [-1.0, 7.0, 7.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    result = shape_rewards(
        torch.tensor([3.0, 5.0]),
        logps,
        reference,
        mask,
        torch.tensor([True, False]),
        beta=0.5,
        params=ShapingParams(),
    )
    assert torch.allclose(result.rewards, torch.tensor([[-0.5, 4.0, 0.0], [-1.2, 0.0, 0.0]]))
    assert torch.allclose(result.kl, torch.tensor([[1.0, -2.0, 0.0], [0.4, 0.0, 0.0]]))
    assert result.scores.tolist() == [3.0, -1.0]
    assert result.missing_eos == 1


def test_k3_by_hand() -> None:
    """Log-ratio log 2: π_ref/π - 1 + log 2 = -½ + log 2."""
    result = shape_rewards(
        torch.zeros(1),
        torch.full((1, 1), math.log(2)),
        torch.zeros(1, 1),
        torch.ones(1, 1, dtype=torch.bool),
        torch.ones(1, dtype=torch.bool),
        beta=1.0,
        params=ShapingParams(kl_estimator="k3"),
    )
    assert float(result.rewards) == pytest.approx(0.5 - math.log(2))


@given(
    st.lists(st.tuples(st.floats(-30, 30, width=32), st.integers(1, 5), st.booleans()), min_size=1, max_size=5),
    st.integers(0, 999),
    st.sampled_from(["replace", "subtract", "none"]),
    st.sampled_from(["k1", "k3"]),
    st.sampled_from([None, 2.0, 10.0]),
)
def test_equals_a_loop_over_tokens(
    rows: list[tuple[float, int, bool]], seed: int, missing_eos: str, estimator: str, clip: float | None
) -> None:
    result, naive = shaped(
        *(list(column) for column in zip(*rows, strict=True)),  # type: ignore[arg-type]
        seed=seed,
        missing_eos=missing_eos,
        missing_eos_penalty=2.5,
        kl_estimator=estimator,
        clip=clip,
    )
    for row, expected in enumerate(naive):
        assert result.rewards[row, : len(expected)].tolist() == pytest.approx(expected, abs=1e-4)
        assert result.rewards[row, len(expected) :].eq(0).all()
        assert result.kl[row, len(expected) :].eq(0).all()
    assert result.missing_eos == sum(not ended for _, _, ended in rows)


def test_the_sum_is_the_score_less_beta_times_the_log_ratio_of_the_sequence() -> None:
    """Σ_t r_t = score - β Σ_t (log π - log π_ref): the objective of RLHF, whatever the token."""
    result, _ = shaped([1.5, -0.5], [4, 2], [True, True], beta=0.3)
    assert torch.allclose(result.rewards.sum(1), torch.tensor([1.5, -0.5]) - 0.3 * result.kl.sum(1))


def test_whitening_keeps_the_mean_over_response_tokens() -> None:
    plain, naive = shaped([1.0, 5.0, -3.0], [3, 1, 4], [True] * 3)
    white, _ = shaped([1.0, 5.0, -3.0], [3, 1, 4], [True] * 3, whiten_rewards=True)
    flat = [value for row in naive for value in row]
    mean = sum(flat) / len(flat)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in flat) / len(flat))
    mask = plain.rewards != 0
    assert white.rewards[mask].tolist() == pytest.approx([(x - mean) / deviation + mean for x in flat], abs=1e-4)
    assert white.rewards[~mask].eq(0).all()


def test_no_gradient_and_inputs_stay() -> None:
    logps = torch.zeros(1, 2, requires_grad=True)
    mask, scores = torch.ones(1, 2, dtype=torch.bool), torch.tensor([20.0])
    result = shape_rewards(
        scores, logps, torch.ones(1, 2), mask, torch.ones(1, dtype=torch.bool), beta=0.1, params=ShapingParams()
    )
    assert not result.rewards.requires_grad
    assert scores.tolist() == [20.0]
    assert result.scores.tolist() == [10.0]


def test_what_cannot_be_placed_is_refused() -> None:
    with pytest.raises(RewardError, match=r"finite score for each of 3 responses, found 2 .*\[0, 2\]"):
        shaped([float("nan"), 1.0, float("inf")], [1, 1, 1], [True] * 3)
    with pytest.raises(RewardError, match=r"at least one token in each of 2 responses, found 1 .*\[1\]"):
        shaped([1.0, 1.0], [2, 0], [True] * 2)
