"""Verb: take feedback files into the append-only raw store and version it."""

from __future__ import annotations

from pathlib import Path

from tasks.feedback.batches import Batch, store_batch
from tasks.versioning.workspace import Versions

RAW = "data/raw"


def ingest_feedback(root: Path, source: str, paths: list[str]) -> list[Batch]:
    """Store each file as an immutable batch named by its digest; known batches are left alone.

    Raises `UsageError` for a missing, unreadable or empty file.
    """
    batches = [store_batch(path, source, root / RAW) for path in paths]
    Versions(root).track(RAW)  # also for known batches: a kill may have come between storing and tracking
    return batches
