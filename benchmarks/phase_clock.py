"""Time of a training run by phase: functions wrapped so that their CPU seconds are booked to one.

Plain Python, because `ppo_trl_side` uses it inside TRL's environment.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any


class PhaseClock:
    """CPU seconds of this process by phase; a wrapped function called inside another counts for the outer one."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside = False

    def wrap(self, phase: str | Callable[[], str], function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, its time booked to `phase`, which may be given at the time of the call."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return function(*args, **kwargs)
            self._inside = True
            start = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[phase if isinstance(phase, str) else phase()] += time.process_time() - start
                self._inside = False

        return timed

    def booked(self, total: float) -> dict[str, float]:
        """Seconds by phase, with what of `total` no phase accounts for as `rest`."""
        return {**self.seconds, "rest": total - sum(self.seconds.values())}
