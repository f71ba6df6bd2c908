"""Token log-probabilities of given completions under a policy.

The naive equivalent (one sequence at a time, a full forward, log-softmax over every position) stands in
the tests. What is done differently here: sequences are sorted by length, and packed without padding where a model
takes it (`responses`), else batched with right padding; the log-softmax runs over completion positions only, in
float32.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from plumbline.data_contracts.errors import ModelError
from plumbline.tasks.models.completions import Layout, completion_logits, packs, unadapted
from plumbline.tasks.models.distributions import target_logps

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
            with torch.no_grad():
                batch = batch_logps(model, [pairs[row] for row in rows], temperature)
            for row, logps in zip(rows, batch, strict=True):
                results[row] = logps.cpu()
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
    """True if a model's forward takes an argument, seen through adapters (PEFT)."""
    return argument in inspect.signature(unadapted(model).forward).parameters


def batch_logps(
    model: PreTrainedModel, pairs: Sequence[tuple[Tokens, Tokens]], temperature: float = 1.0
) -> list[torch.Tensor]:
    """As `token_logps`, in one forward pass with the model as it is (train or eval), its gradient and its device."""
    if not all(head for head, _ in pairs):
        raise ModelError("A prompt has no tokens, so its completion has no first log-probability. Give it a prompt.")
    ids, mask = pad_right([[*head, *tail] for head, tail in pairs], padding_id=0)  # (B, T)
    ids, mask = ids.to(model.device), mask.to(model.device)
    tails = [len(tail) for _, tail in pairs]
    rows = torch.repeat_interleave(torch.arange(len(pairs)), torch.tensor(tails)).to(ids.device)
    positions = torch.cat([torch.arange(len(head), len(head) + len(tail)) for head, tail in pairs]).to(ids.device)
    if packs(unadapted(model)) and all(tails):
        logits = completion_logits(model, Layout.of(ids, rows, positions, packed=True), direct=True)  # (N, V)
    else:
        # the logits at position t predict token t + 1, so those of a completion start one before it
        first = min(len(head) for head, _ in pairs) - 1
        keep = ids.shape[1] - first
        shortcut = {"logits_to_keep": keep} if accepts(model, "logits_to_keep") else {}
        whole = model(input_ids=ids, attention_mask=mask, use_cache=False, **shortcut).logits[:, -keep:]  # (B, K, V)
        logits = whole[rows, positions - 1 - first]
    logps = target_logps(logits.float() / temperature, ids[rows, positions])  # (N,) float32, nats
    return list(torch.split(logps, tails))
