"""Params of gains (`tasks.training.rewards.gains`): how rankings become numbers.

Every command reads them, so no numpy here.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from plumbline.tasks.params.section import Section

GainKind = Literal["winner_takes_all", "schedule", "dcg", "bradley_terry"]


class GainParams(Section):
    """How a judge's rankings become numbers to learn from."""

    kind: GainKind = Field(
        "bradley_terry",
        description="winner_takes_all, schedule (a listed gain a place), dcg (1 / log2(1 + place)), or bradley_terry "
        "(soft scores for a noisy judge, by its measured noise).",
    )
    schedule: tuple[Annotated[float, Field(allow_inf_nan=False)], ...] = Field(
        (1.0, 0.6, 0.3, 0.0),
        min_length=2,
        max_length=64,
        description="Gains from the first place to the last, never rising. For another number of candidates the curve "
        "through them is read at evenly spaced places.",
    )
    prior_std: float = Field(
        1.0,
        gt=0,
        le=10,
        description="Standard deviation that the prior gives Bradley-Terry strengths (natural log odds). 1 lets the "
        "better of two typical candidates win about 3 of 4 times.",
    )
    noise: float | None = Field(
        None,
        ge=0,
        lt=0.5,
        description="Chance that a comparison of the judge comes out the wrong way, for bradley_terry; null takes what "
        "was measured on held-out pairs.",
    )

    @model_validator(mode="after")
    def _schedule_never_rises(self) -> Self:
        if any(later > earlier for earlier, later in pairwise(self.schedule)) or self.schedule[0] == self.schedule[-1]:
            raise ValueError(
                f"schedule {list(self.schedule)} must never rise from one place to the next, and end below where it "
                "starts. Order it from the first place to the last, such as [1.0, 0.6, 0.3, 0.0]."
            )
        return self
