"""The losses of PPO: clipped policy loss, clipped value loss, and what to watch beside them.

Each takes tensors of one shape, flat (M,) or padded with a bool mask (True = counts), and returns sums over
tokens. Dividing by the global number of response tokens of the optimiser step is left to the trainer, so that
accumulation and processes give the same gradient as one large batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from plumbline.tasks.training.finetuning.on_policy.kl_control import k3

LOG_RATIO_LIMIT = 20.0
"""Largest |log ratio| that is exponentiated (verl, `compute_policy_loss`): e^88 overflows, and inf · 0 is NaN."""


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """Sums over tokens, each a scalar; all but `sum` are detached."""

    sum: Tensor  # to be divided by the global number of tokens
    clipped: Tensor  # tokens whose clipped term is the larger one, so that they give no gradient
    approx_kl: Tensor  # sum of k3 of KL(π_old ‖ π), nats
    ratio_sum: Tensor
    ratio_sq_sum: Tensor
    count: Tensor  # tokens


@dataclass(frozen=True, slots=True)
class ValueLoss:
    """Sums over tokens, each a scalar; all but `sum` are detached."""

    sum: Tensor  # to be divided by the global number of tokens
    clipped: Tensor  # tokens whose clipped term is the larger one
    error_sq_sum: Tensor  # sum of (V - R)²
    count: Tensor  # tokens


def policy_loss(
    logps: Tensor, old_logps: Tensor, advantages: Tensor, *, clip_range: float, mask: Tensor | None = None
) -> PolicyLoss:
    """Clipped surrogate loss max(-A·r, -A·clip(r, 1-ε, 1+ε)) with r = π/π_old (Schulman et al. 2017, eq. 7).

    logps carry the gradient; old_logps (nats) are of the policy that sampled, at the same temperature.
    approx_kl is `k3` of KL(π_old ‖ π), for samples of π_old.
    """
    logps, old_logps, advantages = _kept(mask, logps, old_logps, advantages)
    log_ratio = (logps - old_logps).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)  # (M,)
    ratio = log_ratio.exp()
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    fixed_log_ratio, fixed_ratio = log_ratio.detach(), ratio.detach()
    return PolicyLoss(
        sum=torch.maximum(plain, clipped).sum(),
        clipped=(clipped > plain).sum(),
        approx_kl=k3(fixed_log_ratio).sum(),
        ratio_sum=fixed_ratio.sum(),
        ratio_sq_sum=fixed_ratio.square().sum(),
        count=torch.tensor(logps.numel(), device=logps.device),
    )


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, *, clip_range: float | None, mask: Tensor | None = None
) -> ValueLoss:
    """Clipped squared error 0.5·max((V - R)², (clip(V, V_old - ε, V_old + ε) - R)²); `clip_range` None: 0.5·(V - R)².

    values carry the gradient; old_values are the critic's at the rollout (openai/baselines, ppo2).
    """
    values, old_values, returns = _kept(mask, values, old_values, returns)
    plain = clipped = (values - returns).square()  # (M,)
    if clip_range is not None:
        # a value inside the range is itself, so that rounding never counts as clipped
        near = values.clamp(old_values - clip_range, old_values + clip_range)
        clipped = (near - returns).square()
    return ValueLoss(
        sum=0.5 * torch.maximum(plain, clipped).sum(),
        clipped=(clipped > plain).sum(),
        error_sq_sum=plain.detach().sum(),
        count=torch.tensor(values.numel(), device=values.device),
    )


@torch.no_grad()
def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(R - V) / Var(R) over tokens, of the whole rollout: 1 is perfect, a constant gives 0.

    Returns that are all alike have no variance to explain: NaN.
    """
    values, returns = (kept.double() for kept in _kept(mask, values, returns))
    total = float((returns - returns.mean()).square().sum())
    unexplained = float((returns - values - (returns - values).mean()).square().sum())
    return 1.0 - unexplained / total if total > 0 else float("nan")


def _kept(mask: Tensor | None, *tensors: Tensor) -> list[Tensor]:
    """The tokens that count, flat (M,), so that nothing under the mask (NaN included) reaches a sum or a gradient."""
    return [tensor.reshape(-1) if mask is None else tensor[mask] for tensor in tensors]
