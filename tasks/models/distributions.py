"""Log-probabilities and entropies of distributions over the vocabulary, in few passes and with analytic gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable


def target_logps(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Log-probabilities (M,), nats, of targets (M,) under logits (M, V), with an analytic gradient.

    Naive equivalent: `log_softmax(logits).gather(targets)`, whose backward pass takes the exponential of every
    log-probability once more, fills a gradient of zeros (M, V) and sums its rows. Once differentiable.
    """
    logps: torch.Tensor = _TargetLogps.apply(logits, targets.unsqueeze(1))  # type: ignore[no-untyped-call]
    return logps


def distributions(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities (M, V) of logits (M, V), and what added to logits makes them log-probabilities, (M, 1): -log Σ exp.

    The largest probability is exp(0) over the sum that softmax divides by, so its logarithm tells that sum.
    """
    chances = torch.softmax(logits, dim=-1)
    return chances, chances.amax(1, keepdim=True).log_().sub_(logits.amax(1, keepdim=True))


class _TargetLogps(torch.autograd.Function):
    """d log p(target) / d logits = onehot(target) - p."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        chances, shift = distributions(logits)
        ctx.save_for_backward(chances, targets)
        return logits.gather(1, targets).add_(shift).squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        chances, targets = ctx.saved_tensors
        gradient = gradient.unsqueeze(1)
        return (chances * -gradient).scatter_add_(1, targets, gradient), None


def logps_and_entropies(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As `target_logps`, with the entropies (M,), nats, of the distributions; the gradient of both is analytic.

    Where no gradient comes back to the entropies, as when they are only watched, none is computed for them.
    """
    found: tuple[torch.Tensor, torch.Tensor] = _LogpsAndEntropies.apply(  # type: ignore[no-untyped-call]
        logits, targets.unsqueeze(1)
    )
    return found


class _LogpsAndEntropies(torch.autograd.Function):
    """d log p(target) / d logits = onehot(target) - p, and dH / d logits = -p·(log p + H)."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        chances, shift = distributions(logits)
        logps = logits + shift  # (M, V)
        entropies = -torch.linalg.vecdot(chances, logps)
        ctx.save_for_backward(logps, chances, targets, entropies)
        ctx.set_materialize_grads(False)
        return logps.gather(1, targets).squeeze(1), entropies

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, of_logps: torch.Tensor | None, of_entropies: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, None]:
        logps, chances, targets, entropies = ctx.saved_tensors
        pull: torch.Tensor | None = None
        if of_logps is not None:
            weight = of_logps.unsqueeze(1)
            pull = (chances * -weight).scatter_add_(1, targets, weight)
        if of_entropies is not None:
            spread = (logps + entropies.unsqueeze(1)).mul_(chances).mul_(-of_entropies.unsqueeze(1))
            pull = spread if pull is None else pull.add_(spread)
        return pull, None
