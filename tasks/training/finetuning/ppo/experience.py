"""Experience of an update: episodes as sampled and scored, and the tensors that the losses read.

Everything here lives on the CPU and is the same on every process: episodes are gathered once an update, so that
whitening, KL control, metrics and the order of minibatches need no further word between processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from plumbline.tasks.models.completions import located
from plumbline.tasks.models.judging import Scored
from plumbline.tasks.models.sampling import Completion


@dataclass(frozen=True, slots=True)
class Episodes:
    """N prompts with their sampled, scored responses of up to T tokens, in the order of the update's plan.

    `logps` and `reference_logps` (N, T) are nats at the temperature of the update, `values` (N, T) the critic's of the
    state before each token; all are 0 behind the end, where `mask` (N, T) is False. `critic_pass`: `values` with the
    graph of the pass that gave them, where that was asked for.
    """

    prompts: Sequence[Sequence[int]]
    completions: Sequence[Completion]
    scored: Scored
    logps: torch.Tensor
    reference_logps: torch.Tensor
    values: torch.Tensor
    mask: torch.Tensor
    temperature: float
    critic_pass: torch.Tensor | None = None

    @property
    def finished(self) -> torch.Tensor:
        """(N,) bool: ended by a stop token."""
        return torch.tensor([each.finished for each in self.completions])

    @property
    def tokens(self) -> int:
        """Response tokens of all episodes."""
        return int(self.mask.sum())

    def kl_per_token(self) -> tuple[float, float]:
        """KL(π ‖ π_ref) in nats per token by the mean log-ratio, and its standard error (ratio estimator, by rows)."""
        sums = (self.logps - self.reference_logps).masked_fill(~self.mask, 0.0).double().sum(1)  # (N,)
        counts = self.mask.sum(1).double()
        mean = sums.sum() / counts.sum()
        rows = len(sums)
        spread = (sums - mean * counts).square().sum() * rows / max(rows - 1, 1)
        return float(mean), float(spread.sqrt() / counts.sum())


@dataclass(frozen=True, slots=True)
class Experience:
    """Episodes as tensors for the losses.

    ids (N, L) int64: prompt and response, padded on the right; lengths (N,) counts both. mask (N, T) bool, True = a
    response token; the others (N, T) float32, 0 if masked. `critic_pass` (N, T): the rollout's own values with their
    graph, good for the first optimiser step, before which no weight moves.
    """

    ids: torch.Tensor
    prompt_lengths: torch.Tensor
    lengths: torch.Tensor
    mask: torch.Tensor
    logps: torch.Tensor
    values: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor
    temperature: float
    critic_pass: torch.Tensor | None = None

    def micro_batch(self, rows: torch.Tensor, *, first: bool = False) -> dict[str, Any]:
        """The tensors of one forward pass and its losses for `rows` (B,), flat over their M response tokens.

        `first`: it is of the first optimiser step, so that the critic's pass of the rollout, if kept, is handed on.
        """
        mask = self.mask[rows]
        kept: dict[str, Any] = {
            name: getattr(self, name)[rows][mask] for name in ("logps", "values", "advantages", "returns")
        }
        if first and self.critic_pass is not None:
            kept["critic_pass"] = self.critic_pass[rows][mask]
        return kept | located(self.ids[rows], self.prompt_lengths[rows], self.lengths[rows], mask)

    def tokens(self, rows: torch.Tensor) -> int:
        """Response tokens of `rows`."""
        return int(self.mask[rows].sum())


def joined(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Prompt + completion padded on the right (N, L), prompt lengths (N,), whole lengths (N,), mask (N, T).

    Padding has id 0: right of a causal sequence nothing reads it, so no attention mask is needed either.
    """
    heads = np.array([len(prompt) for prompt in prompts])
    tails = np.array([len(completion) for completion in completions])
    ids = np.zeros((len(heads), int((heads + tails).max())), dtype=np.int64)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        ids[row, : heads[row]] = prompt
        ids[row, heads[row] : heads[row] + tails[row]] = completion
    mask = np.arange(tails.max())[None] < tails[:, None]
    return tuple(torch.from_numpy(array) for array in (ids, heads, heads + tails, mask))  # type: ignore[return-value]


def padded(rows: Sequence[Sequence[float]], mask: torch.Tensor) -> torch.Tensor:
    """Values of each response token as (N, T) float32, 0 behind the end."""
    flat = torch.tensor([value for row in rows for value in row], dtype=torch.float32)
    return torch.zeros(mask.shape).masked_scatter(mask, flat)


def minibatch_rows(
    lengths: torch.Tensor, minibatches: int, generator: torch.Generator, *, process: int, processes: int, parts: int
) -> list[tuple[torch.Tensor, list[torch.Tensor]]]:
    """For each minibatch of one pass: its rows, and those of this process in `parts` micro-batches of similar length.

    1. A random order deals the N rows out to the minibatches: a minibatch is a fair sample, whatever the lengths.
    2. Within a minibatch, rows are sorted by length and dealt out to processes in turn: equal work.
    3. Each process cuts its share into micro-batches of neighbouring lengths: little padding.

    Losses are sums over tokens, divided by the minibatch's global count: how 2. and 3. cut changes no gradient.
    """
    order = torch.randperm(len(lengths), generator=generator)
    cut = []
    for rows in order.tensor_split(minibatches):
        by_length = rows[lengths[rows].argsort(descending=True, stable=True)]
        cut.append((rows, list(by_length[process::processes].tensor_split(parts))))
    return cut
