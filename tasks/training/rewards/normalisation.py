"""Normalisation of one reward term: (value - mean) / standard deviation, then a clip.

- `reference`: mean and deviation of the term on answers of π_ref, fixed once by `fit` (reward normalisation of
  Ziegler et al. 2019, section 2.2, there to mean 0 and variance 1 on the initial policy);
- `running`: over every value met so far (Welford 1962, merged batch by batch after Chan, Golub & LeVeque 1983);
- `none`: the value as it is.

Deviations are those of the population (n, not n - 1). Where a term gave one value everywhere there is nothing to
divide by: the mean is subtracted and no more, and the caller learns of it by `flat`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from plumbline.data_contracts.errors import RewardError
from plumbline.tasks.models.judging import Floats

NO_SPREAD = 1e-9
"""A deviation at most this share of the largest absolute value is rounding of equal float64 values, not spread."""


@dataclass(slots=True)
class Normaliser:
    """Mean and spread of one term; `count` values have been met, `m2` is the sum of their squared deviations."""

    kind: Literal["reference", "running", "none"]
    clip: float | None
    count: int = 0
    mean: float = 0.0
    m2: float = 0.0
    largest: float = 0.0

    @property
    def spread(self) -> float:
        """Population standard deviation of what was met, 0 before the first value."""
        return float(np.sqrt(self.m2 / self.count)) if self.count else 0.0

    @property
    def flat(self) -> bool:
        """True if a normalised term has met values, but no spread to divide by."""
        return self.kind != "none" and self.count > 0 and self.spread <= NO_SPREAD * self.largest

    def fit(self, values: Floats) -> None:
        """Forget what was met and start from `values` (N,), all finite."""
        self.count, self.mean, self.m2, self.largest = 0, 0.0, 0.0, 0.0
        self.update(values)

    def update(self, values: Floats) -> None:
        """Take in further values (N,), all finite. Naive equivalent: mean and variance of everything at once."""
        if not len(values):
            return
        added, mean = len(values), float(values.mean())
        total, delta = self.count + added, mean - self.mean
        self.m2 += float(((values - mean) ** 2).sum()) + delta**2 * self.count * added / total
        self.mean += delta * added / total
        self.largest = max(self.largest, float(np.abs(values).max()))
        self.count = total

    def apply(self, values: Floats) -> Floats:
        """Normalise and clip values (N,); NaN stays NaN.

        Raises `RewardError` for values to be normalised by a mean and spread that nothing was measured for.
        """
        if self.kind != "none":
            if not self.count and np.isfinite(values).any():
                raise RewardError(
                    f"Expected a mean and spread to normalise by ({self.kind}), found none. Call `calibrate` on "
                    "answers of π_ref before the first `score` (reference), `restore` a checkpoint, or set normalise: "
                    "none."
                )
            values = (values - self.mean) / (self.spread if self.count and not self.flat else 1.0)
        return values if self.clip is None else np.clip(values, -self.clip, self.clip)

    def state(self) -> dict[str, Any]:
        """The state, JSON-able and exact."""
        return {"count": self.count, "mean": self.mean, "m2": self.m2, "largest": self.largest}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()`. Raises `RewardError` for what no `state()` gave."""
        try:
            count, moments = int(state["count"]), [float(state[name]) for name in ("mean", "m2", "largest")]
        except (KeyError, TypeError, ValueError) as error:
            raise RewardError(
                f"Expected the state of a normaliser (count, mean, m2, largest), found {str(dict(state))[:200]}. The "
                "checkpoint is of another version or damaged: start the run anew."
            ) from error
        self.count, (self.mean, self.m2, self.largest) = count, moments
