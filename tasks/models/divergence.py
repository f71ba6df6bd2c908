"""KL(π‖π_ref), in nats, on completions that π sampled.

Three estimators, all unbiased for the divergence of whole completions when the samples come from π
itself (temperature divides the logits of both; top_p = 1):

1. `kl`: at every position the divergence of the full next-token distributions, summed along the
   completion. By the chain rule its expectation is the KL divergence of completions; it is k1 with
   the token drawn at each position integrated out (Rao-Blackwell), so its variance is the lowest.
2. `k1`: log π - log π_ref of the drawn tokens (Schulman 2020, "Approximating KL divergence").
3. `k3`: (r - 1) - log r with r = π_ref/π of the drawn token; never negative (ibid.).

k1 and k3 are what trainers log; beside `kl` they show whether a trainer's figure can be trusted.
With top_p < 1 the states are those that the nucleus sampler visits: `kl` is still the mean divergence
at these states, k1 and k3 are biased.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from plumbline.tasks.models.logps import accepts, length_sorted_batches, pad_right

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Floats = NDArray[np.float64]
Pair = tuple[Sequence[int], Sequence[int]]

# positions x vocabulary of each model held at once: on a CPU small enough to stay near its caches (a third faster
# than 2^26), elsewhere 1 GiB in float32
_CPU_CELLS, _ACCELERATOR_CELLS = 1 << 22, 1 << 28


@dataclass(frozen=True, slots=True)
class SequenceDivergences:
    """Sums over the tokens of each of n completions, (n,), nats; `tokens` (n,) counts them."""

    kl: Floats
    k1: Floats
    k3: Floats
    tokens: NDArray[np.int64]


def sequence_divergences(
    policy: PreTrainedModel,
    reference: PreTrainedModel | None,
    pairs: Sequence[Pair],
    *,
    batch_size: int,
    temperature: float = 1.0,
) -> SequenceDivergences:
    """Divergences of completions (prompt ids, completion ids) that `policy` sampled; its mode is kept.

    `reference` None: the policy with its adapter off.
    """
    sums = np.zeros((3, len(pairs)))
    lengths = [len(head) + len(tail) for head, tail in pairs]
    if pairs:
        vocabulary = int(policy.config.get_text_config().vocab_size)
        cells = _CPU_CELLS if policy.device.type == "cpu" else _ACCELERATOR_CELLS
        batch_size = max(1, min(batch_size, cells // (max(lengths) * vocabulary)))
    was_training = policy.training
    policy.eval()
    for rows in length_sorted_batches(lengths, batch_size):
        batch = [pairs[row] for row in rows]
        logps = _completion_distributions(policy, batch, temperature)  # (N, V)
        with _as_reference(policy, reference) as frozen:
            reference_logps = _completion_distributions(frozen, batch, temperature)
        drawn = torch.tensor([token for _, tail in batch for token in tail], device=logps.device)
        values = token_divergences(logps, reference_logps, drawn)  # (3, N)
        owner = np.repeat(rows, [len(tail) for _, tail in batch])
        for row, value in zip(sums, values.cpu().numpy(), strict=True):
            np.add.at(row, owner, value)
    policy.train(was_training)
    kl, k1, k3 = sums
    return SequenceDivergences(kl, k1, k3, np.array([len(tail) for _, tail in pairs], dtype=np.int64))


def token_divergences(logps: torch.Tensor, reference_logps: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """(kl, k1, k3) of each position: (3, N) float64, from log-probabilities (N, V) and drawn tokens (N,)."""
    difference = logps - reference_logps
    # a token that the policy cannot draw (log-probability -inf) adds nothing, though -inf - -inf is NaN
    terms = torch.where(logps.isneginf(), torch.zeros_like(logps), logps.exp() * difference)
    k1 = difference.gather(1, drawn.unsqueeze(1)).squeeze(1).double()
    return torch.stack([terms.sum(dim=-1).double(), k1, torch.expm1(-k1) + k1])


@contextmanager
def _as_reference(policy: PreTrainedModel, reference: PreTrainedModel | None) -> Iterator[PreTrainedModel]:
    if reference is not None:
        reference.eval()
        yield reference
        return
    with policy.disable_adapter():
        yield policy


@torch.no_grad()
def _completion_distributions(model: PreTrainedModel, batch: Sequence[Pair], temperature: float) -> torch.Tensor:
    """Log-probabilities (N, V), float32, at the N completion positions of a batch, row by row."""
    ids, mask = pad_right([[*head, *tail] for head, tail in batch], padding_id=0)  # (B, T)
    # the logits at position t predict token t + 1, so those of a completion start one before it
    first = min(len(head) for head, _ in batch) - 1
    keep = ids.shape[1] - first
    shortcut = {"logits_to_keep": keep} if accepts(model, "logits_to_keep") else {}
    ids, mask = ids.to(model.device), mask.to(model.device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False, **shortcut).logits[:, -keep:]  # (B, K, V)
    rows = torch.repeat_interleave(torch.arange(len(batch)), torch.tensor([len(tail) for _, tail in batch]))
    positions = torch.cat([torch.arange(len(head), len(head) + len(tail)) for head, tail in batch])
    picked = logits[rows.to(ids.device), (positions - 1 - first).to(ids.device)]
    return torch.log_softmax(picked.float() / temperature, dim=-1)
