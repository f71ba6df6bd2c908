"""Writing the log beside the requests: a bounded queue and one thread.

What a crash can lose is what was answered since the last transaction: some milliseconds' worth as a rule, and never
more than the queue holds. An orderly end writes everything. A database that is down is tried again, and what waits
stays in the queue; what finds the queue full is dropped and counted. An interaction that the database would refuse for
ever is set aside and counted, and holds up no other.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, StatementError

from plumbline.data_contracts.errors import PlumblineError
from plumbline.data_contracts.interactions import Interaction

Sink = Callable[[Sequence[Interaction]], int]
"""Writes interactions in one transaction; says how many had an id that was taken."""

_BATCH = 200
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0


class LogWriter:
    """Takes interactions from any thread and writes them from its own."""

    def __init__(self, sink: Sink, capacity: int) -> None:
        self._sink = sink
        self._capacity = capacity
        self._waiting: deque[Interaction] = deque()
        self._changed = threading.Condition()
        self._ending = False
        self.dropped = 0
        self.clashes = 0
        self.set_aside = 0
        self.trouble: str | None = None
        self.refused: str | None = None
        self._thread = threading.Thread(target=self._work, name="interaction log", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Interactions not yet in the database."""
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """True if the next one would be dropped."""
        return len(self._waiting) >= self._capacity

    def put(self, interaction: Interaction) -> bool:
        """Hand over one interaction; never waits. False, and counted, where the queue is full."""
        with self._changed:
            if self.full or self._ending:
                self.dropped += 1
                return False
            self._waiting.append(interaction)
            self._changed.notify_all()
        return True

    def flush(self, timeout_s: float) -> bool:
        """Wait until what was handed over is written; False where it was not in time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting, timeout_s)

    def close(self, timeout_s: float) -> int:
        """Write what waits, take nothing more; say how many could not be written in time."""
        self.flush(timeout_s)
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        self._thread.join(_LONGEST_PAUSE_S)
        return len(self._waiting)

    def _work(self) -> None:
        pause = _FIRST_PAUSE_S
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._ending)
                if self._ending:
                    return
                batch = [self._waiting[place] for place in range(min(_BATCH, len(self._waiting)))]
            if self._write(batch):
                pause = _FIRST_PAUSE_S
                continue
            with self._changed:
                self._changed.wait_for(lambda: self._ending, pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _write(self, batch: Sequence[Interaction]) -> bool:
        """Write a batch, one by one where one of it is refused; False where the database is to be tried again."""
        error = self._attempt(batch)
        if error is None or not _is_final(error):
            return error is None
        return all(self._write_one(interaction) for interaction in batch)

    def _write_one(self, interaction: Interaction) -> bool:
        error = self._attempt([interaction])
        if error is None or not _is_final(error):
            return error is None
        self.set_aside += 1
        self.refused = f"interaction log: {self.set_aside} set aside; the last is {interaction.id}: {self.trouble}"
        self._leave(1)
        return True

    def _attempt(self, batch: Sequence[Interaction]) -> Exception | None:
        """One transaction; what it holds leaves the queue only once it is committed."""
        try:
            self.clashes += self._sink(batch)
        except Exception as error:  # whatever it is: this thread must not end, and /healthz reports it
            self.trouble = str(error) if isinstance(error, PlumblineError) else f"{type(error).__name__}: {error}"
            return error
        self._leave(len(batch))
        return None

    def _leave(self, count: int) -> None:
        with self._changed:
            for _ in range(count):
                self._waiting.popleft()
            self.trouble = None
            self._changed.notify_all()


def _is_final(error: Exception) -> bool:
    """True if trying again cannot help, because a value is refused; else the database itself could not be used."""
    if not isinstance(error, PlumblineError):
        return True
    cause = error.__cause__
    unsent = isinstance(cause, StatementError) and not isinstance(cause, DBAPIError)
    return unsent or isinstance(cause, DataError | IntegrityError)
