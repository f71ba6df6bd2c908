"""Verb: take files that a person gives into the raw store, and announce them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from plumbline.data_contracts.errors import OperationsError
from plumbline.tasks.data.feedback.batches import Batch
from plumbline.tasks.data.ingest_feedback import count_rows, ingest_feedback
from plumbline.tasks.operations.announce import announce_batches
from plumbline.tasks.params.whole import Params


@dataclass(frozen=True, slots=True)
class TakenFile:
    """One file, as the batch that it became. `waits`: it comes in when the run under way has ended.

    `found` says what the file is, by its head; None if that is not clear, and the source was named.
    """

    file: str
    batch: str
    sha256: str
    new: bool
    waits: bool
    announced: bool
    source: str
    found: str | None


@dataclass(frozen=True, slots=True)
class TakenFeedback:
    """The files that were taken. `pending` says why events wait, or is None if none does."""

    batches: list[TakenFile]
    pending: str | None


def take_feedback(
    root: Path,
    params: Params,
    source: str | None,
    files: Sequence[str],
    server: str | None = None,
    *,
    columns: Mapping[str, str] = MappingProxyType({}),
) -> TakenFeedback:
    """Store and version the files, then tell the server where one is configured. Raises as `ingest_feedback`."""
    batches = ingest_feedback(root, source, list(files), params.feedback.limits(), columns=columns)
    announced: dict[str, bool] = {}
    pending = None
    try:
        for kind in sorted({batch.source for batch in batches}):
            own = [batch for batch in batches if batch.source == kind]
            entries = announce_batches(root, params, kind, own, count_rows(own), server)
            announced |= {entry.payload["sha256"]: entry.emitted_at is not None for entry in entries}
    except OperationsError as error:  # the batch is safe and versioned; a later drain or poll announces it
        pending = str(error)
    return TakenFeedback([_taken(root, batch, announced.get(batch.digest, False)) for batch in batches], pending)


def _taken(root: Path, batch: Batch, announced: bool) -> TakenFile:
    return TakenFile(
        file=batch.given,
        batch=batch.path.relative_to(root).as_posix(),
        sha256=batch.digest,
        new=batch.new,
        waits=not batch.path.is_file(),
        announced=announced,
        source=batch.source,
        found=batch.found.text if batch.found else None,
    )
