"""Did variants have the same budget of training, and if not, what had the dearer one won by the cheaper one's?

Nothing is scaled beforehand: methods have different units (epochs, episodes), and what they cost is known once it is
measured. Where seconds lie apart, the evaluations that each training made on its way tell how far it was by then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class BudgetReading:
    """An evaluation during training: CPU seconds spent by then (about), win rate by the judge, KL in nats per token."""

    cpu_seconds: float
    win_rate: float
    kl_per_token: float


@dataclass(frozen=True, slots=True)
class Spread:
    """The least and the most CPU seconds of training among variants; within a factor `within` they are one budget."""

    least: float
    most: float
    within: float

    @property
    def factor(self) -> float:
        """The ratio of the most to the least."""
        return self.most / self.least

    @property
    def equal(self) -> bool:
        """True if all had the same budget."""
        return self.factor <= self.within


def readings_of(facts: Mapping[str, Any], cpu_seconds: float) -> tuple[BudgetReading, ...]:
    """The evaluations of a training in the order they were made, from its manifest's facts and its CPU seconds.

    A step is taken to cost the same at any time, and loading to be spread over the steps: the share of steps is that of
    seconds. None for a stack, whose methods' steps cost differently, and if nothing was sampled for a win rate.
    """
    if "stages" in facts:
        return ()
    steps = facts["steps"]["run"]
    return tuple(
        BudgetReading(cpu_seconds * each["step"] / steps, each["win_rate"], each["kl_per_token"])
        for each in facts["evaluations"]
        if "win_rate" in each
    )


def win_rate_at(seeds: Sequence[Sequence[BudgetReading]], cpu_seconds: float, max_kl: float) -> float | None:
    """Win rate that a training of `cpu_seconds` would have kept, a mean over seeds; None if a seed has no reading.

    Kept is the best reading by then inside the KL band, or the best of all if none is inside, as the methods keep
    checkpoints. A run cut short has not lowered its learning rate, so that this tends to fall short of one so planned.
    """
    kept = [_kept([each for each in readings if each.cpu_seconds <= cpu_seconds], max_kl) for readings in seeds]
    known = [value for value in kept if value is not None]
    return sum(known) / len(known) if known and len(known) == len(seeds) else None


def _kept(readings: Sequence[BudgetReading], max_kl: float) -> float | None:
    if not readings:
        return None
    return max(readings, key=lambda each: (each.kl_per_token <= max_kl, each.win_rate)).win_rate
