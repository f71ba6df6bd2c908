"""The figures of an update: summed over tokens on the device, read once at its end, averaged over the rows of a log."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from plumbline.data_contracts.errors import StageError
from plumbline.tasks.training.finetuning.ppo.losses import PolicyLoss, ValueLoss

SUMS = (
    "policy_loss",
    "clipped",
    "approx_kl",
    "ratio",
    "ratio_sq",
    "policy_tokens",
    "value_loss",
    "value_clipped",
    "value_tokens",
    "entropy",
    "entropy_tokens",
)
"""Sums over the tokens of an update."""

LAST = ("episodes", "beta", "beta_ramp")
"""Figures whose last value a log row shows; of the others it shows the mean over its updates."""


class Figures:
    """Collects the figures of updates between two log rows. No tensor is read before an update ends."""

    def __init__(self) -> None:
        self._rollout: dict[str, float] | None = None  # of the update under way
        self._closed: list[dict[str, float]] = []  # updates since the last log row
        self._sums = torch.zeros(len(SUMS), dtype=torch.float64)
        self._norms: list[Tensor] = []

    def open(self, rollout: dict[str, float]) -> None:
        """Begin an update with the figures of its rollout."""
        self._rollout = rollout

    def add(self, policy: PolicyLoss | None, value: ValueLoss, entropy: Tensor | None) -> None:
        """Add a micro-batch; `entropy` is summed over its tokens."""
        nothing = torch.zeros((), device=value.sum.device)
        sums = [nothing] * 6
        if policy is not None:
            sums = [
                policy.sum.detach(),
                policy.clipped,
                policy.approx_kl,
                policy.ratio_sum,
                policy.ratio_sq_sum,
                policy.count,
            ]
        sums += [value.sum.detach(), value.clipped, value.count]
        sums += [nothing, nothing] if entropy is None else [entropy.detach(), value.count]
        self._sums = self._sums.to(value.sum.device) + torch.stack([each.double() for each in sums])

    def add_norms(self, norms: Sequence[Tensor]) -> None:
        """Add the gradient norms of policy and critic at an optimiser step."""
        self._norms.append(torch.stack(list(norms)))

    def close(self, reduce: Callable[[Tensor], Tensor], where: str) -> dict[str, float] | None:
        """End the update: its figures, or None when none is under way. `reduce` sums a tensor over processes.

        Raises `StageError` for losses that are not finite.
        """
        if self._rollout is None:
            return None
        found = dict(zip(SUMS, reduce(self._sums).tolist(), strict=True))
        figures = self._rollout | _means(found)
        if self._norms:
            norms = torch.stack(self._norms).mean(0).tolist()
            figures |= dict(zip(("grad_norm", "critic_grad_norm"), norms, strict=True))
        self._rollout, self._norms = None, []
        self._sums = torch.zeros_like(self._sums)
        losses = {name: figures[name] for name in ("policy_loss", "value_loss") if name in figures}
        if not all(math.isfinite(loss) for loss in losses.values()):
            raise StageError(
                f"Expected finite losses, found {losses} in the update before {where}: the training diverged. Lower "
                "learning_rate "
                "or critic_learning_rate, or lengthen the warm-up."
            )
        self._closed.append(figures)
        return figures

    def take(self) -> dict[str, float]:
        """The figures of a log row: means over the updates since the last one. Empty when there are none."""
        updates, self._closed = self._closed, []
        names = dict.fromkeys(name for figures in updates for name in figures)
        row = {}
        for name in names:
            found = [figures[name] for figures in updates if name in figures]
            row[name] = found[-1] if name in LAST else math.fsum(found) / len(found)
        return row


def _means(sums: Mapping[str, float]) -> dict[str, float]:
    """Means per token of what `SUMS` names; nothing of the policy in updates that train the critic alone."""
    figures = {
        "value_loss": sums["value_loss"] / sums["value_tokens"],
        "value_clip_fraction": sums["value_clipped"] / sums["value_tokens"],
    }
    if tokens := sums["policy_tokens"]:
        figures |= {
            "policy_loss": sums["policy_loss"] / tokens,
            "clip_fraction": sums["clipped"] / tokens,
            "approx_kl": sums["approx_kl"] / tokens,
            "ratio_variance": max(sums["ratio_sq"] / tokens - (sums["ratio"] / tokens) ** 2, 0.0),
        }
    if tokens := sums["entropy_tokens"]:
        figures["entropy"] = sums["entropy"] / tokens
    return figures
