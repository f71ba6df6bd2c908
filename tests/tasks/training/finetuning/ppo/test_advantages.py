from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plumbline.tasks.training.finetuning.ppo.advantages import gae, whiten


def naive_gae(
    rewards: list[float], values: list[float], gamma: float, lam: float, step: int = 0
) -> list[tuple[float, float]]:
    """The recursive definition for one row: (advantage, return) of each token from `step` on."""
    if step == len(rewards):
        return []
    rest = naive_gae(rewards, values, gamma, lam, step + 1)
    next_value = values[step + 1] if step + 1 < len(values) else 0.0
    delta = rewards[step] + gamma * next_value - values[step]
    advantage = delta + gamma * lam * (rest[0][0] if rest else 0.0)
    return [(advantage, advantage + values[step]), *rest]


def batch(lengths: list[int], seed: int, filler: float = float("nan")) -> tuple[torch.Tensor, ...]:
    """Rewards, values (N, T) with `filler` behind the end, and the mask."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths, default=0))
    mask = torch.arange(shape[1])[None] < torch.tensor(lengths)[:, None]
    rewards, values = torch.randn((2, *shape), generator=generator)
    return rewards.masked_fill(~mask, filler), values.masked_fill(~mask, filler), mask


lengths = st.lists(st.integers(1, 7), min_size=1, max_size=5)
share = st.floats(0, 1)


def test_three_tokens_by_hand() -> None:
    """gamma ½, lam ½ (their product ¼), rewards 1, 0, 2, values 2, 4, 6.

    δ: 1 + ½·4 - 2 = 1; 0 + ½·6 - 4 = -1; 2 + 0 - 6 = -4. A_3 = -4; A_2 = -1 - 1 = -2; A_1 = 1 - ½ = ½.
    Returns A + V: 2½, 2, 2."""
    rewards, values = torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([[2.0, 4.0, 6.0]])
    advantages, returns = gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), gamma=0.5, lam=0.5)
    assert advantages.tolist() == [[0.5, -2.0, -4.0]]
    assert returns.tolist() == [[2.5, 2.0, 2.0]]


@given(lengths, st.integers(0, 999), share, share)
def test_equals_the_recursion_row_by_row(lengths: list[int], seed: int, gamma: float, lam: float) -> None:
    rewards, values, mask = batch(lengths, seed)
    advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=lam)
    for row, length in enumerate(lengths):
        naive = naive_gae(rewards[row, :length].tolist(), values[row, :length].tolist(), gamma, lam)
        assert advantages[row, :length].tolist() == pytest.approx([each for each, _ in naive], abs=1e-5)
        assert returns[row, :length].tolist() == pytest.approx([each for _, each in naive], abs=1e-5)
        assert advantages[row, length:].eq(0).all()
        assert returns[row, length:].eq(0).all()


@given(lengths, st.integers(0, 999))
def test_lam_1_is_reward_to_go_minus_value(lengths: list[int], seed: int) -> None:
    """Σ_k δ_{t+k} telescopes: every value but the first cancels."""
    rewards, values, mask = batch(lengths, seed, filler=0.0)
    advantages, returns = gae(rewards, values, mask, gamma=1.0, lam=1.0)
    to_go = rewards.flip(1).cumsum(1).flip(1) * mask
    assert torch.allclose(advantages, to_go - values, atol=1e-5)
    assert torch.allclose(returns, to_go, atol=1e-5)


@given(lengths, st.integers(0, 999), share)
def test_lam_0_is_the_td_error(lengths: list[int], seed: int, gamma: float) -> None:
    rewards, values, mask = batch(lengths, seed, filler=0.0)
    advantages, _ = gae(rewards, values, mask, gamma=gamma, lam=0.0)
    after = torch.cat([values[:, 1:], torch.zeros(len(values), 1)], dim=1)
    assert torch.allclose(advantages, rewards + gamma * after - values, atol=1e-6)


@given(lengths, st.integers(0, 999), share, share)
def test_the_true_value_function_leaves_no_advantage(lengths: list[int], seed: int, gamma: float, lam: float) -> None:
    """V_t = r_t + gamma·V_{t+1} makes every δ 0, whatever lam."""
    rewards, values, mask = batch(lengths, seed, filler=0.0)
    for step in range(values.shape[1] - 1, -1, -1):
        after = values[:, step + 1] if step + 1 < values.shape[1] else torch.zeros(len(values))
        values[:, step] = (rewards[:, step] + gamma * after) * mask[:, step]
    advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=lam)
    assert torch.allclose(advantages, torch.zeros_like(advantages), atol=1e-5)
    assert torch.allclose(returns, values, atol=1e-5)


def test_inputs_stay_and_no_gradient_flows() -> None:
    rewards, values, mask = batch([3, 1], seed=1, filler=9.0)
    before = rewards.clone(), values.clone()
    advantages, returns = gae(rewards.requires_grad_(), values.requires_grad_(), mask, gamma=1.0, lam=0.95)
    assert torch.equal(rewards, before[0])
    assert torch.equal(values, before[1])
    assert not advantages.requires_grad
    assert not returns.requires_grad


def test_no_rows_at_all() -> None:
    rewards, values, mask = torch.zeros(0, 4), torch.zeros(0, 4), torch.zeros(0, 4, dtype=torch.bool)
    assert gae(rewards, values, mask, gamma=1.0, lam=1.0)[0].shape == (0, 4)


def test_whitening_by_hand() -> None:
    """Kept 1, 3, 5, 7: mean 4, population variance (9 + 1 + 1 + 9) / 4 = 5; masked 99 counts for nothing."""
    values = torch.tensor([[1.0, 3.0, 99.0], [5.0, 7.0, float("nan")]])
    mask = torch.tensor([[True, True, False], [True, True, False]])
    root = 5**0.5
    expected = torch.tensor([[-3 / root, -1 / root, 0.0], [1 / root, 3 / root, 0.0]])
    assert torch.allclose(whiten(values, mask), expected, atol=1e-6)
    kept_mean = torch.where(mask, expected + 4, 0.0)
    assert torch.allclose(whiten(values, mask, shift_mean=False), kept_mean, atol=1e-6)


@given(lengths, st.integers(0, 999), st.booleans(), st.floats(-1e4, 1e4))
def test_whitening_equals_mean_and_variance_of_the_kept_values(
    lengths: list[int], seed: int, shift_mean: bool, offset: float
) -> None:
    values, _, mask = batch(lengths, seed)
    values = values + offset
    whitened = whiten(values, mask, shift_mean=shift_mean)
    kept = [float(value) for value in values[mask]]
    mean = sum(kept) / len(kept)
    deviation = (sum((value - mean) ** 2 for value in kept) / len(kept) + 1e-8) ** 0.5
    naive = [(value - mean) / deviation + (0.0 if shift_mean else mean) for value in kept]
    assert whitened[mask].tolist() == pytest.approx(naive, abs=1e-5, rel=1e-6)
    assert whitened[~mask].eq(0).all()


def test_values_all_alike_or_none_at_all() -> None:
    mask = torch.tensor([[True, True]])
    assert whiten(torch.tensor([[3.0, 3.0]]), mask).tolist() == [[0.0, 0.0]]
    assert whiten(torch.tensor([[3.0, 3.0]]), mask, shift_mean=False).tolist() == [[3.0, 3.0]]
    assert whiten(torch.tensor([[3.0, 3.0]]), ~mask).tolist() == [[0.0, 0.0]]
