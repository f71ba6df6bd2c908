"""Counts in `facts["tokens"]`, of every method alike.

- `seen`: tokens of prompt and response in training passes, forward and backward, without padding; once a pass,
  whatever networks take it (PPO's policy and critic read the same sequence). Not counted are passes without a
  gradient: of π_ref, of validation, of sampling, and of KTO's mismatched responses.
- `generated`: tokens sampled in training rollouts, end tokens included, also those of completions that were replaced.
  Methods that learn from recorded feedback sample none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from plumbline.tasks.params.finetuning import OfflineParams


def of_passes(lengths: Sequence[int], params: OfflineParams, *, steps: int, processes: int) -> dict[str, int]:
    """Tokens of `steps` optimiser steps over examples of these lengths, none sampled.

    A last pass that was cut off counts by its share of the steps of a pass, so that count is right to within a batch.
    """
    batches = math.ceil(len(lengths) / (params.per_device_train_batch_size * processes))
    steps_a_pass = math.ceil(batches / params.gradient_accumulation_steps)
    return {"seen": round(sum(lengths) * steps / steps_a_pass), "generated": 0}


def in_all(stages: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The sum over the stages of a stack."""
    each = list(stages)
    return {name: sum(tokens[name] for tokens in each) for name in ("seen", "generated")}
