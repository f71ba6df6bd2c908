"""Advantages: generalised advantage estimation, and whitening over the global batch.

Everything here is arithmetic on numbers that are fixed for an update: no gradient flows through it.
"""

from __future__ import annotations

import torch
from torch import Tensor

VARIANCE_FLOOR = 1e-8
"""Added to the variance before its root (summarize_from_feedback_details, `whiten`)."""


@torch.no_grad()
def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns of N responses, each (N, T), 0 if masked (Schulman et al. 2016, eqs. 11, 12 and 16).

    rewards, values (N, T) float32; values[:, t] is of the state before token t. mask (N, T) bool, True = a response
    token, a prefix of each row. With V = 0 behind the last token, which is an end and never a cut to bootstrap from:

        δ_t = r_t + gamma V_{t+1} - V_t      A_t = δ_t + gamma lam A_{t+1}      R_t = A_t + V_t

    What stands under the mask is not read, NaN included. The naive equivalent (the recursion, one row at a time)
    stands in the tests.
    """
    values = values.masked_fill(~mask, 0.0)
    following = torch.cat([values[:, 1:], values.new_zeros(len(values), 1)], dim=1)[:, : values.shape[1]]
    # 0 behind the end, because rewards and values are: the mask is a prefix, so no later step has to look at it
    deltas = rewards.masked_fill(~mask, 0.0) + gamma * following - values
    advantages = torch.zeros_like(deltas)
    running = deltas.new_zeros(len(deltas))
    for step in range(deltas.shape[1] - 1, -1, -1):
        running = deltas[:, step] + gamma * lam * running  # (N,)
        advantages[:, step] = running
    return advantages, advantages + values


@torch.no_grad()
def whiten(values: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    """Scale values to variance 1 and, with `shift_mean`, to mean 0, over all tokens that count.

    values: any shape, of the whole rollout, never of a micro-batch or of one process; mask: bool, True = counts; the
    result is 0 if masked. Without `shift_mean` the mean stays, as for rewards, whose sign matters. The variance is
    that of the population (1/n). Sums are float64.
    """
    kept = values[mask].double()  # (M,)
    if kept.numel() == 0:
        return torch.zeros_like(values)
    mean = kept.mean()
    whitened = (kept - mean) * (kept.var(correction=0) + VARIANCE_FLOOR).rsqrt()
    if not shift_mean:
        whitened = whitened + mean
    return torch.zeros_like(values).masked_scatter(mask, whitened.to(values.dtype))
