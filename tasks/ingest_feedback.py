"""Verb: take feedback files into the append-only raw store and version it."""

from __future__ import annotations

from pathlib import Path

from tasks.feedback.batches import Batch, store_batch
from tasks.validate_feedback import RAW
from tasks.versioning.workspace import Versions


def ingest_feedback(root: Path, source: str, paths: list[str]) -> list[Batch]:
    """Store each file as an immutable batch named by its digest; known batches are left alone.

    Raises `UsageError` for a missing, unreadable or empty file; the files before it stay ingested.
    """
    batches: list[Batch] = []
    try:
        for path in paths:
            batches.append(store_batch(path, source, root / RAW))
    finally:
        # Also where a later file is refused, and for known batches, which a killed ingest may have left unversioned.
        if batches:
            Versions(root).track(RAW)
    return batches
