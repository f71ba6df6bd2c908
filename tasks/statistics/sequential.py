"""A sequential test of "the mean has fallen below (risen above) a reference by more than a margin"."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from plumbline.tasks.statistics.betting import FRACTIONS, Floats, gains, pooled

Direction = Literal["below", "above"]


class SequentialTest:
    """An e-process against "the mean is still at least reference - margin" (or at most reference + margin).

    Feed values in [low, high] one at a time (`update`) or many (`extend`); look whenever you like. While the mean is
    where it should be, `decided` ever becomes true with probability at most alpha; once true it stays.

    With `restarting`, `restart()` marks a moment from which the mean may have changed (a day): the j-th start
    holds the share 1/(j·(j + 1)) of the stake and what is left waits for later starts. A change after a long good
    time is then seen within the same alpha, where one bet from the first day on would have lost its stake by then.
    """

    def __init__(
        self,
        *,
        reference: float,
        alpha: float,
        margin: float = 0.0,
        direction: Direction = "below",
        low: float = 0.0,
        high: float = 1.0,
        restarting: bool = False,
    ) -> None:
        if not 0 < alpha < 1 or not low < high or margin < 0 or not low <= reference <= high:
            raise ValueError(
                f"expected 0 < alpha < 1, low ≤ reference ≤ high and margin ≥ 0, found alpha={alpha}, low={low}, "
                f"high={high}, reference={reference}, margin={margin}"
            )
        self.alpha, self.direction, self.restarting = alpha, direction, restarting
        self._low, self._span = low, high - low
        edge = reference - margin if direction == "below" else reference + margin
        scaled = min(1.0, max(0.0, (edge - low) / self._span))
        self._mean = 1.0 - scaled if direction == "below" else scaled
        self.threshold = low + self._span * scaled
        self._starts = [np.zeros(FRACTIONS.size)]  # log capital of each start at each stake
        self._peak = 0.0
        self.n, self._total = 0, 0.0

    def update(self, value: float) -> float:
        """Take one value; returns the e-value after it."""
        return self.extend([value])

    def extend(self, values: ArrayLike | Iterable[float]) -> float:
        """Take values in their order, looking after each; returns the e-value after the last."""
        x = np.asarray(values, dtype=np.float64)
        if x.ndim != 1 or not ((x >= self._low) & (x <= self._low + self._span)).all():
            raise ValueError(f"expected values (n,) in [{self._low}, {self._low + self._span}], found {x[:3]}")
        y = (x - self._low) / self._span
        steps = np.cumsum(gains(1.0 - y if self.direction == "below" else y, self._mean), axis=0)  # (n, stakes)
        if x.size:
            self._peak = max(self._peak, float(self._log_e_along(steps).max()))
            self._starts = [start + steps[-1] for start in self._starts]
            self.n, self._total = self.n + x.size, self._total + float(x.sum())
        return self.e_value

    def restart(self) -> None:
        """From here on the mean may be another one."""
        if not self.restarting:
            raise ValueError("expected a test made with restarting=True")
        if self.n:
            self._starts.append(np.zeros(FRACTIONS.size))

    @property
    def mean(self) -> float:
        """Mean of the values so far; NaN before the first."""
        return self._total / self.n if self.n else math.nan

    @property
    def log_e(self) -> float:
        """Log e-value now; joined over several metrics by `adjusted_log_e`."""
        return float(self._log_e_along(np.zeros((1, FRACTIONS.size)))[0])

    @property
    def e_value(self) -> float:
        """Evidence now: the capital of a gambler who bet on the change and began with 1."""
        return math.exp(min(self.log_e, 700.0))

    @property
    def decided(self) -> bool:
        """True if the e-value has ever reached 1/alpha: the mean has changed by more than the margin."""
        return self._peak >= math.log(1 / self.alpha)

    def _log_e_along(self, steps: Floats) -> Floats:
        """Log e-value after each of the steps (n, stakes) that follow."""
        if not self.restarting:
            return pooled(self._starts[0] + steps)
        shares = np.log([1 / (j * (j + 1)) for j in range(1, len(self._starts) + 1)])
        total = np.full(len(steps), -math.log(len(self._starts) + 1))  # what waits for later starts
        for share, start in zip(shares, self._starts, strict=True):
            total = np.logaddexp(total, share + pooled(start + steps))
        return np.asarray(total, dtype=np.float64)
