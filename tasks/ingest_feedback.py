"""Verb: take feedback files into the append-only raw store and version it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from tasks.feedback.batches import Batch, store_batch
from tasks.feedback.containers import read_lines
from tasks.feedback.withdrawals import Withdrawal, keep_withdrawal
from tasks.validate_feedback import RAW
from tasks.versioning.workspace import Versions


def ingest_feedback(
    root: Path, source: str, paths: Sequence[str | Path], *, senders: Sequence[str | None] = ()
) -> list[Batch]:
    """Store each file as an immutable batch named by its digest; known batches are left alone.

    `senders` says who sent each row, where there is one file whose rows came over HTTP.

    Raises `UsageError` for a missing, unreadable or empty file; the files before it stay ingested.
    """
    batches: list[Batch] = []
    with _one_writer(root):
        try:
            for path in paths:
                batches.append(store_batch(path, source, root / RAW, senders))
        finally:
            # Also where a later file is refused, and for known batches: a killed ingest may have left them unversioned.
            if batches:
                Versions(root).track(RAW)
    return batches


def version_raw(root: Path) -> None:
    """Version what lies in the raw store, as an ingest does that was not killed."""
    with _one_writer(root):
        Versions(root).track(RAW)


def withdraw_from_raw(root: Path, entry: Withdrawal) -> Path:
    """Append a withdrawal to the raw store, and version it."""
    with _one_writer(root):
        path = keep_withdrawal(root / RAW, entry)
        Versions(root).track(RAW)
    return path


def count_rows(batches: Sequence[Batch]) -> dict[str, int]:
    """Rows of each batch, by its digest."""
    return {batch.digest: sum(1 for _ in read_lines(batch.path)) for batch in batches}


@contextmanager
def _one_writer(root: Path) -> Iterator[None]:
    """One process at a time in the raw store: a second would sweep the first's temporary file away."""
    lock = root / ".plumbline" / "ingest.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        yield
