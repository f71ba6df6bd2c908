"""Verb: take files that a person gives into the raw store, and announce them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from plumbline.data_contracts.errors import OperationsError
from plumbline.tasks.data.ingest_feedback import count_rows, ingest_feedback
from plumbline.tasks.operations.announce import announce_batches
from plumbline.tasks.params.whole import Params


@dataclass(frozen=True, slots=True)
class TakenFile:
    """One file, as the batch that it became. `waits`: it comes in when the run under way has ended."""

    file: str
    batch: str
    sha256: str
    new: bool
    waits: bool
    announced: bool


@dataclass(frozen=True, slots=True)
class TakenFeedback:
    """The files that were taken. `pending` says why events wait, or is None if none does."""

    batches: list[TakenFile]
    pending: str | None


def take_feedback(
    root: Path, params: Params, source: str, files: Sequence[str], server: str | None = None
) -> TakenFeedback:
    """Store and version the files, then tell the server where one is configured. Raises as `ingest_feedback`."""
    batches = ingest_feedback(root, source, list(files), params.feedback.limits())
    announced, pending = {}, None
    try:
        entries = announce_batches(root, params, source, batches, count_rows(batches), server)
        announced = {entry.payload["sha256"]: entry.emitted_at is not None for entry in entries}
    except OperationsError as error:  # the batch is safe and versioned; a later drain or poll announces it
        pending = str(error)
    taken = [
        TakenFile(
            file,
            batch.path.relative_to(root).as_posix(),
            batch.digest,
            batch.new,
            not batch.path.is_file(),
            announced.get(batch.digest, False),
        )
        for file, batch in zip(files, batches, strict=True)
    ]
    return TakenFeedback(taken, pending)
