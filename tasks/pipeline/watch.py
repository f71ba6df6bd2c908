"""The watch of a run: a display on a terminal, or none. Set once by the command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from plumbline.data_contracts.progress import Progress, silent
from plumbline.tasks.pipeline.stage import Stage, StageRecord


class Watch(Protocol):
    """The methods of a display."""

    def started(self, stage: Stage) -> None:
        """A stage begins, or is about to be found clean."""

    def progress(self, stage: Stage) -> Progress:
        """The function to which the stage reports its progress."""

    def finished(self, stage: Stage, record: StageRecord) -> None:
        """A stage is whole and committed."""


class Unwatched:
    """Nobody looks."""

    def started(self, stage: Stage) -> None:
        """Say nothing."""

    def progress(self, stage: Stage) -> Progress:
        """Report to nobody."""
        return silent

    def finished(self, stage: Stage, record: StageRecord) -> None:
        """Say nothing."""


_current: Watch = Unwatched()


def watch() -> Watch:
    """The present watch."""
    return _current


@contextmanager
def watched_by(new: Watch) -> Iterator[None]:
    """Inside, this one watches the process's runs."""
    set_watch(new)
    try:
        yield
    finally:
        set_watch(Unwatched())


def set_watch(new: Watch) -> None:
    """Replace the watch of this process."""
    global _current
    _current = new
