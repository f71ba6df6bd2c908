from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plumbline.tasks.training.finetuning.ppo.losses import explained_variance, policy_loss, value_loss

EPSILON = 0.2


def naive_policy_terms(logp: float, old: float, advantage: float, epsilon: float) -> tuple[float, float]:
    """The unclipped and the clipped term of one token."""
    ratio = math.exp(logp - old)
    return -advantage * ratio, -advantage * min(max(ratio, 1 - epsilon), 1 + epsilon)


def draws(seed: int, tokens: int = 12) -> torch.Tensor:
    return torch.randn((3, tokens), generator=torch.Generator().manual_seed(seed)) * 0.4


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "clipped"),
    [
        (1.0, 2.0, -2.0, -2.0, 0),  # the first pass over a rollout: plain policy gradient
        (1.1, 2.0, -2.2, -2.2, 0),
        (1.5, 2.0, -2.4, 0.0, 1),  # good token, made likely enough: -A·1.2, no more gradient
        (0.5, 2.0, -1.0, -1.0, 0),  # good token, made rarer by accident: the pull back is not clipped
        (0.5, -2.0, 1.6, 0.0, 1),  # bad token, made rare enough: -A·0.8, no more gradient
        (1.5, -2.0, 3.0, 3.0, 0),  # bad token, made likelier by accident: the push back is not clipped
    ],
)
def test_one_token_by_hand(ratio: float, advantage: float, loss: float, gradient: float, clipped: int) -> None:
    """ε = 0.2. Unclipped, d(-A·r)/d log π = -A·r; where the clipped term is the larger, the gradient is 0."""
    logp = torch.tensor([math.log(ratio)], requires_grad=True)
    result = policy_loss(logp, torch.zeros(1), torch.tensor([advantage]), clip_range=EPSILON)
    result.sum.backward()
    assert result.sum.item() == pytest.approx(loss, abs=1e-6)
    assert logp.grad is not None
    assert logp.grad.tolist() == pytest.approx([gradient], abs=1e-5)
    assert int(result.clipped) == clipped
    assert int(result.count) == 1


@given(st.integers(0, 999), st.floats(0.05, 0.5))
def test_policy_loss_equals_a_loop_over_tokens(seed: int, epsilon: float) -> None:
    logps, old, advantages = draws(seed)
    result = policy_loss(logps, old, advantages, clip_range=epsilon)
    terms = [
        naive_policy_terms(*token, epsilon)
        for token in zip(logps.tolist(), old.tolist(), advantages.tolist(), strict=True)
    ]
    ratios = [math.exp(a - b) for a, b in zip(logps.tolist(), old.tolist(), strict=True)]
    assert float(result.sum) == pytest.approx(sum(max(pair) for pair in terms), abs=1e-4)
    assert int(result.clipped) == sum(clipped > plain + 1e-9 for plain, clipped in terms)
    assert float(result.ratio_sum) == pytest.approx(sum(ratios), rel=1e-5)
    assert float(result.ratio_sq_sum) == pytest.approx(sum(ratio**2 for ratio in ratios), rel=1e-5)
    assert float(result.approx_kl) == pytest.approx(sum(r - 1 - math.log(r) for r in ratios), abs=1e-4)
    assert int(result.count) == 12


def test_k3_by_hand() -> None:
    """r = 2 and ½: 2 - 1 - log 2 + ½ - 1 + log 2 = ½; k3 is never negative, even for tiny steps in float32."""
    logps = torch.tensor([math.log(2), -math.log(2)])
    assert float(policy_loss(logps, torch.zeros(2), torch.zeros(2), clip_range=0.2).approx_kl) == pytest.approx(0.5)
    tiny = torch.full((1000,), 1e-5)
    assert float(policy_loss(tiny, torch.zeros(1000), tiny, clip_range=0.2).approx_kl) >= 0


def test_an_exploded_ratio_leaves_finite_numbers() -> None:
    """log r = 200 would be inf, and the gradient of the unused branch 0 · inf = NaN."""
    logps = torch.tensor([200.0, 200.0], requires_grad=True)
    result = policy_loss(logps, torch.zeros(2), torch.tensor([1.0, -1.0]), clip_range=0.2)
    result.sum.backward()
    assert logps.grad is not None
    assert logps.grad.isfinite().all()
    assert all(math.isfinite(part.item()) for part in (result.sum, result.approx_kl, result.ratio_sum))


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "gradient", "clipped"),
    [
        (1.0, 1.0, 3.0, 2.0, -2.0, 0),  # ½·2²; V - R = -2
        (2.0, 1.0, 3.0, 1.62, 0.0, 1),  # moved 1 towards R, 0.2 allowed: ½·(1.2 - 3)² = 1.62, no more gradient
        (0.0, 1.0, 3.0, 4.5, -3.0, 0),  # moved away from R: the unclipped error ½·3² is the larger
        (5.0, 1.0, 0.0, 12.5, 5.0, 0),
    ],
)
def test_one_value_by_hand(value: float, old: float, target: float, loss: float, gradient: float, clipped: int) -> None:
    values = torch.tensor([value], requires_grad=True)
    result = value_loss(values, torch.tensor([old]), torch.tensor([target]), clip_range=0.2)
    result.sum.backward()
    assert result.sum.item() == pytest.approx(loss, abs=1e-6)
    assert values.grad is not None
    assert values.grad.tolist() == pytest.approx([gradient], abs=1e-5)
    assert int(result.clipped) == clipped
    assert float(result.error_sq_sum) == pytest.approx((value - target) ** 2)


@given(st.integers(0, 999), st.floats(0.05, 0.5))
def test_value_loss_equals_a_loop_over_tokens(seed: int, epsilon: float) -> None:
    values, old, returns = draws(seed)
    result = value_loss(values, old, returns, clip_range=epsilon)
    terms = []
    for v, o, r in zip(values.tolist(), old.tolist(), returns.tolist(), strict=True):
        terms.append(((v - r) ** 2, (min(max(v, o - epsilon), o + epsilon) - r) ** 2))
    assert float(result.sum) == pytest.approx(sum(0.5 * max(pair) for pair in terms), abs=1e-4)
    plain = value_loss(values, old, returns, clip_range=None)
    assert float(plain.sum) == pytest.approx(sum(0.5 * first for first, _ in terms), abs=1e-4)
    assert int(plain.clipped) == 0


def test_rounding_does_not_count_as_a_clipped_value() -> None:
    """A critic that moved by less than ε is not clipped; V_old + (V - V_old) is V but for the last bit of some."""
    old = 0.19 * torch.rand(1000, generator=torch.Generator().manual_seed(0))
    moved = 0.01 * torch.rand(1000, generator=torch.Generator().manual_seed(1))
    assert int((old + (moved - old) != moved).sum()) > 0
    result = value_loss(moved, old, torch.zeros(1000), clip_range=0.2)
    assert int(result.clipped) == 0
    assert float(result.sum) == float(value_loss(moved, old, torch.zeros(1000), clip_range=None).sum)


@given(st.integers(0, 999))
def test_padding_changes_nothing_and_gets_no_gradient(seed: int) -> None:
    """(N, T) with NaN under the mask gives the sums, and the gradient, of the flat kept tokens."""
    mask = torch.arange(4)[None] < torch.tensor([4, 1, 3])[:, None]
    padded = draws(seed).reshape(3, 3, 4).masked_fill(~mask, float("nan"))
    for loss in (policy_loss, value_loss):
        wide, flat = padded.clone(), padded[:, mask]
        wide.requires_grad_()
        flat.requires_grad_()
        masked = loss(*wide, clip_range=0.2, mask=mask)
        kept = loss(*flat, clip_range=0.2)
        for name in masked.__slots__:
            assert torch.equal(getattr(masked, name), getattr(kept, name)), name
        masked.sum.backward()
        kept.sum.backward()
        assert wide.grad is not None
        assert flat.grad is not None
        assert torch.equal(wide.grad[0][mask], flat.grad[0])
        assert wide.grad[0][~mask].eq(0).all()


def test_sums_of_parts_are_the_sum_of_the_whole_and_empty_parts_are_0() -> None:
    logps, old, advantages = draws(5)
    whole = policy_loss(logps, old, advantages, clip_range=0.2)
    parts = [
        policy_loss(logps[cut], old[cut], advantages[cut], clip_range=0.2)
        for cut in (slice(0, 5), slice(5, 5), slice(5, 12))
    ]
    for name in whole.__slots__:
        assert float(sum(getattr(part, name) for part in parts)) == pytest.approx(float(getattr(whole, name)))
    assert not whole.approx_kl.requires_grad


def test_explained_variance_by_hand() -> None:
    """R = 1, 2, 3, 4 has variance 5/4. V = R explains all; a constant nothing; V = R + 7 all but a mean; V = -R:
    R - V = 2R, four times the variance, 1 - 4 = -3. R alike: there is nothing to explain."""
    returns = torch.tensor([[1.0, 2.0, 3.0], [4.0, 99.0, 99.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert explained_variance(returns, returns, mask) == 1.0
    assert explained_variance(torch.full_like(returns, 8.0), returns, mask) == pytest.approx(0.0)
    assert explained_variance(returns + 7, returns, mask) == pytest.approx(1.0)
    assert explained_variance(-returns, returns, mask) == pytest.approx(-3.0)
    assert explained_variance(-returns / 1000, returns / 1000, mask) == pytest.approx(-3.0)  # however small
    assert math.isnan(explained_variance(returns, torch.ones_like(returns), mask))
