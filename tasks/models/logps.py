"""Token log-probabilities of given completions under a policy.

The naive equivalent (one sequence at a time, a full forward, log-softmax over every position) stands in
the tests. What is done differently here: sequences are sorted by length and batched with right padding,
logits are computed from the first completion position on, and the log-softmax runs over completion
positions only, in float32.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import once_differentiable

from data_contracts.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Tokens = Sequence[int]


def token_logps(
    model: PreTrainedModel,
    pairs: Sequence[tuple[Tokens, Tokens]],
    *,
    max_length: int,
    batch_size: int,
    temperature: float = 1.0,
) -> list[torch.Tensor]:
    """Log-probability (nats) of each token of each completion given its prompt.

    `pairs` are (prompt ids, completion ids), as `chat.encode_all` gives them (end token included) or as a sampler
    drew them. Returns one float32 tensor of shape (completion tokens,) a pair, on the CPU, in the order given.
    Raises `ModelError` when pairs exceed `max_length` tokens: split them off first (`chat.split_by_context`).
    """
    refuse_too_long([len(head) + len(tail) for head, tail in pairs], max_length)
    results: list[torch.Tensor] = [torch.empty(0)] * len(pairs)
    was_training = model.training
    model.eval()
    try:
        for rows in length_sorted_batches([len(head) + len(tail) for head, tail in pairs], batch_size):
            batch = _batch_logps(model, [pairs[row] for row in rows], temperature)
            for row, logps in zip(rows, batch, strict=True):
                results[row] = logps
    finally:
        model.train(was_training)
    return results


def length_sorted_batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Row numbers in batches of similar length, longest first, so that a batch holds little padding."""
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def refuse_too_long(lengths: Sequence[int], max_length: int) -> None:
    """Raise `ModelError` when any sequence has more than `max_length` tokens."""
    too_long = [length for length in lengths if length > max_length]
    if too_long:
        raise ModelError(
            f"Expected at most {max_length} tokens of prompt and response together, found {len(too_long)} of "
            f"{len(lengths)} sequences longer (the longest has {max(too_long)}). Set them aside first "
            "(`split_by_context`) or raise max_length up to the context of the model."
        )


def pad_right(sequences: Sequence[Tokens], padding_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (B, T) and attention mask (B, T; 1 = a token, 0 = padding) of sequences padded on the right."""
    width = max(len(sequence) for sequence in sequences)
    ids = torch.full((len(sequences), width), padding_id, dtype=torch.long)
    mask = torch.zeros((len(sequences), width), dtype=torch.long)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.as_tensor(sequence, dtype=torch.long)
        mask[row, : len(sequence)] = 1
    return ids, mask


def accepts(model: PreTrainedModel, argument: str) -> bool:
    """Whether a model's forward takes an argument, seen through adapters (PEFT)."""
    inner = model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model
    return argument in inspect.signature(inner.forward).parameters


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


@torch.no_grad()
def _batch_logps(
    model: PreTrainedModel, pairs: Sequence[tuple[Tokens, Tokens]], temperature: float
) -> list[torch.Tensor]:
    ids, mask = pad_right([[*head, *tail] for head, tail in pairs], padding_id=0)  # (B, T)
    ids, mask = ids.to(model.device), mask.to(model.device)
    # the logits at position t predict token t + 1, so those of a completion start one before it
    first = min(len(head) for head, _ in pairs) - 1
    if first < 0:
        raise ModelError("A prompt has no tokens, so its completion has no first log-probability. Give it a prompt.")
    keep = ids.shape[1] - first
    shortcut = {"logits_to_keep": keep} if accepts(model, "logits_to_keep") else {}
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False, **shortcut).logits[:, -keep:]  # (B, K, V)
    rows = torch.repeat_interleave(torch.arange(len(pairs)), torch.tensor([len(tail) for _, tail in pairs]))
    positions = torch.cat([torch.arange(len(head), len(head) + len(tail)) for head, tail in pairs])
    rows, positions = rows.to(ids.device), positions.to(ids.device)
    picked = logits[rows, positions - 1 - first].float() / temperature  # (N, V), N completion tokens of the batch
    targets = ids[rows, positions].unsqueeze(1)
    logps = torch.log_softmax(picked, dim=-1).gather(1, targets).squeeze(1).cpu()  # (N,) float32, nats
    return list(torch.split(logps, [len(tail) for _, tail in pairs]))
