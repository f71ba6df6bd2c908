"""From the rewards of groups to advantages: each candidate is compared with the others of its own prompt.

A_k = (r_k - mean of its group) / (s + 1e-4), with s the standard deviation of

- the group (`group`; GRPO, Shao et al. 2024, section 4.1.2): every group weighs the same, whatever its spread;
- all rewards of the rollout (`batch`; Liu et al. 2025, "Tricks or traps", section 3.1): a group in which the
  candidates hardly differ weighs less;
- nothing, s + 1e-4 = 1 (`none`; Dr. GRPO, Liu et al. 2025).

The formulas, Bessel's correction and the 1e-4 are those of TRL 1.16's `scale_rewards`. They stand here because TRL
counts a group without a judgement as a warning that prints its prompt, and has no say in which groups are replaced;
its own scaling is switched off, and what it adds, the subtraction of a group mean that is 0 already, changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from plumbline.tasks.models.judging import Floats

Scale = Literal["group", "batch", "none"]
Reduce = Callable[[Floats], Floats]
"""Sums an array over the processes of a run, element by element."""

_EPSILON = 1e-4  # TRL 1.16, grpo_trainer.py: `advantages / (std_rewards + 1e-4)`
_NO_SPREAD = 1e-8  # gains are of order 1: what lies closer is the same gain, rounded


def without_spread(rewards: Floats) -> NDArray[np.bool_]:
    """Which groups (G,) have one and the same reward throughout, so that nothing is learned; False where unjudged."""
    spread = rewards.max(axis=1) - rewards.min(axis=1)  # (G,), NaN in, NaN out
    return np.asarray(spread <= _NO_SPREAD, dtype=np.bool_)


def unjudged(rewards: Floats) -> NDArray[np.bool_]:
    """Which groups (G,) have no judgement."""
    return np.asarray(np.isnan(rewards).any(axis=1), dtype=np.bool_)


def advantages(rewards: Floats, scale: Scale, reduce: Reduce = lambda sums: sums) -> Floats:
    """Advantages (G, K) of rewards (G, K); 0 throughout a group without a judgement (NaN).

    `reduce` sums over processes for `batch`, so that every process divides by the same deviation.
    """
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    if scale == "group":
        centred = centred / (rewards.std(axis=1, ddof=1, keepdims=True) + _EPSILON)
    elif scale == "batch":
        centred = centred / (_deviation(rewards, reduce) + _EPSILON)
    return np.asarray(np.nan_to_num(centred, nan=0.0), dtype=np.float64)


def _deviation(rewards: Floats, reduce: Reduce) -> float:
    """Standard deviation of all judged rewards of all processes, with Bessel's correction; 0 of fewer than two."""
    judged = rewards[~unjudged(rewards)]
    total, count = reduce(np.array([judged.sum(), judged.size], dtype=np.float64))
    if count < 2:
        return 0.0
    (squares,) = reduce(np.array([((judged - total / count) ** 2).sum()]))
    return float(np.sqrt(squares / (count - 1)))
