"""Figures of a policy trained on pairs, on the validation split.

Preference accuracy: share of pairs whose implicit reward beta * (log π - log π_ref) is higher for the chosen
response (Rafailov et al. 2023, eq. 5); ties count half. With an arena also its win rate and KL (`arena`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from plumbline.tasks.models.logps import token_logps
from plumbline.tasks.models.pairs import TokenisedPairs
from plumbline.tasks.training.finetuning.arena import Arena, share_won

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Validation:
    """Everything that an evaluation during training needs."""

    pairs: TokenisedPairs
    reference_logps: torch.Tensor  # (N, 2), nats; columns chosen, rejected
    beta: float
    max_length: int
    batch_size: int
    arena: Arena | None

    def measure(self, model: PreTrainedModel) -> dict[str, float]:
        """Metrics of a policy: `preference_accuracy`, `margin`, and with an arena `win_rate`, `kl_per_token`, …"""
        metrics = self._preference(model)
        if self.arena is not None:
            metrics |= self.arena.meet(model).metrics()
        return metrics

    def _preference(self, model: PreTrainedModel) -> dict[str, float]:
        sides = [(pair.prompt_ids, ids) for pair in self.pairs.tokens for ids in (pair.chosen_ids, pair.rejected_ids)]
        rewards = self.rewards(token_logps(model, sides, max_length=self.max_length, batch_size=self.batch_size))
        margins = rewards[:, 0] - rewards[:, 1]  # (N,)
        return {"preference_accuracy": share_won(margins), "margin": float(margins.mean())}

    def rewards(self, logps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Implicit rewards (N, 2), chosen and rejected, from token log-probabilities (nats) of both, alternating."""
        return self.beta * (torch.stack([row.sum() for row in logps]).reshape(-1, 2) - self.reference_logps)


def draw_pairs(pairs: TokenisedPairs, count: int, seed: int) -> TokenisedPairs:
    """At most `count` pairs, drawn with the seed, in the order of the split."""
    count = min(count, len(pairs.tokens))
    return pairs.subset(sorted(random.Random(seed).sample(range(len(pairs.tokens)), count)))
