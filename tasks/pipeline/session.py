"""The session that the stages of one run share."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from plumbline.tasks.params.section import Section
from plumbline.tasks.pipeline.stage import StageRecord


class RunLog(Protocol):
    """The log of a run (`tasks.registry.store.runs.Run`)."""

    def log_stage(self, record: StageRecord) -> str:
        """Log a stage that is whole and committed; return the id of its run."""

    def seconds_of(self, stage: str, digest: str) -> float | None:
        """Seconds of the run that made this output of a stage; None if no run is known."""

    def log_variant(self, name: str, folder: Path, settings: Mapping[str, Any], values: Mapping[str, Any]) -> str:
        """Log one variant of a comparison; return the id of its run."""

    def log_files(self, folder: Path, name: str) -> None:
        """Log a folder of files."""

    def log_outcome(self, metrics: Mapping[str, Any], settings: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Log the figures, settings and tags of the whole run."""


@dataclass(frozen=True, slots=True)
class Session:
    """The session that every stage task of one flow run shares."""

    root: Path
    params: Section
    run: RunLog
    cancelled: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def cancelling(self) -> Iterator[None]:
        """End the stages that still run when the block is left by an error."""
        try:
            yield
        except BaseException:
            self.cancelled.set()
            raise
