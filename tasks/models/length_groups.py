"""Batches of similar lengths in random order, so that a forward pass holds little padding.

The naive equivalent is a random order, in which each batch is as long as its longest example. Rows are shuffled,
sorted by length within windows of some batches, and the batches shuffled again: each epoch meets every row once,
batches differ from epoch to epoch, and no run of steps sees long examples only. (transformers' own
`group_by_length` takes its order from the global generator, which a resumed run cannot repeat, and leaves the
batches of a window sorted from long to short.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler

_BATCHES_SORTED_TOGETHER = 32


class LengthGroups(Sampler[int]):
    """Row numbers such that each `size` consecutive ones are of similar length; fixed by seed and epoch alone."""

    def __init__(self, lengths: Sequence[int], size: int, seed: int) -> None:
        self.lengths = lengths
        self.size = size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; the trainer does, also where it resumes."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Rows an epoch."""
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        """The rows of the epoch; those that fill no whole batch come last, and are a random choice."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order: list[int] = torch.randperm(len(self.lengths), generator=generator).tolist()
        whole = len(order) - len(order) % self.size
        batches: list[list[int]] = []
        for start in range(0, whole, self.size * _BATCHES_SORTED_TOGETHER):
            window = order[start : min(start + self.size * _BATCHES_SORTED_TOGETHER, whole)]
            near = sorted(window, key=lambda row: self.lengths[row])
            batches += [near[place : place + self.size] for place in range(0, len(near), self.size)]
        for batch in torch.randperm(len(batches), generator=generator).tolist():
            yield from batches[batch]
        yield from order[whole:]


class GroupsByLength:
    """Mixin for a trainer: `lengths` (tokens of each training row) groups its batches; None leaves the order random."""

    args: Any

    def __init__(self, *args: Any, lengths: Sequence[int] | None, **kwargs: Any) -> None:
        self._lengths = lengths
        super().__init__(*args, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self._lengths is None:
            return super()._get_train_sampler(train_dataset)  # type: ignore[misc]
        # consecutive batches go to the devices of one step, which wait for the longest
        return LengthGroups(self._lengths, self.args.train_batch_size * self.args.world_size, self.args.data_seed)
