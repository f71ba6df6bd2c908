"""Verb: take feedback files into the append-only raw store and version it.

A batch is accepted once it lies whole in `.plumbline/arrived`, beside the store. From there it comes into the store and
under version control in one go: at once if nobody reads the store, else when the run that reads it has ended. So a
run sees one list of batches from its beginning to its end. A kill between two steps leaves nothing to repair by hand:
the next command that writes or reads the store completes them.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

from filelock import FileLock, Timeout

from plumbline.data_contracts.artifact import INCOMING, sha256_file
from plumbline.data_contracts.errors import PlumblineError, UsageError, WorkspaceBusy
from plumbline.tasks.data.feedback.batches import Batch, BatchChoices, changed_batch, store_batch
from plumbline.tasks.data.feedback.places import expand
from plumbline.tasks.data.feedback.validate import NamedBatch, raw_batches
from plumbline.tasks.data.feedback.withdrawals import Withdrawal, Withdrawals, keep_withdrawal, load_withdrawals
from plumbline.tasks.data.validate_feedback import RAW
from plumbline.tasks.params.feedback_limits import LIMITS, Limits
from plumbline.tasks.storage.versioning.tombstones import load_tombstones
from plumbline.tasks.storage.versioning.workspace import Versions

ARRIVED = ".plumbline/arrived"
"""Accepted batches on their way into the raw store, in the folders that they will have there."""

ERASURE = ".plumbline/erasure.json"
"""The journal of an erasure that has not ended: until it has, the raw store may be half of what it will be."""

_logger = logging.getLogger("plumbline.ingest")


def ingest_feedback(
    root: Path,
    source: str | None,
    paths: Sequence[str | Path],
    limits: Limits = LIMITS,
    *,
    senders: Sequence[str | None] = (),
    columns: Mapping[str, str] = MappingProxyType({}),
) -> list[Batch]:
    """Store each file as an immutable batch named by its digest; known batches are left alone.

    Without a source each file says its own. A folder or a pattern stands for its files. A batch's path is its place in
    the raw store, also where it waits for the run under way to end. `senders` says who sent each row, if there is one
    file whose rows came over HTTP; `columns` is a person's map, which is kept beside each batch. Raises `UsageError`
    for a missing, unreadable or empty file, and for one that does not say what it is; the files before it stay
    ingested.
    """
    intake = BatchChoices(columns, senders, limits, store=root / RAW)
    batches: list[Batch] = []
    with one_writer(root):
        try:
            for path in expand(paths):
                batches.append(_accept(root, source, path, intake))
        finally:
            # Also where a later file is refused, and for known batches: a killed ingest may have left them unversioned.
            if batches:
                _bring_in(root)
    return batches


def version_raw(root: Path) -> None:
    """Complete what ingests that were killed, or that met a run, have left to do."""
    with one_writer(root):
        _bring_in(root)


def withdraw_from_raw(root: Path, entry: Withdrawal) -> Path:
    """Append a withdrawal to the raw store, and version it; it waits for a run under way as a batch does."""
    with one_writer(root):
        path = keep_withdrawal(root / ARRIVED, entry, after=root / RAW)
        _bring_in(root)
    return root / RAW / path.name


def withdrawals_of(root: Path) -> Withdrawals:
    """Every withdrawal of a workspace, those that wait for a run to end included."""
    return load_withdrawals(root / RAW, root / ARRIVED)


@contextmanager
def fixed_raw(root: Path) -> Iterator[None]:
    """Keep the raw store as it is while a run reads it: what has arrived comes in before, what arrives comes in after.

    Raises `VersioningError` if a batch was changed or removed by hand.
    """
    _require_erased(root)
    reading = FileLock(_reading(root))
    with one_writer(root):
        _bring_in(root)
        reading.acquire()
    try:
        yield
    finally:
        reading.release()
        _bring_in_after(root)


@contextmanager
def raw_to_change(root: Path) -> Iterator[None]:
    """Keep the raw store for one erasure: nobody reads it, and what has arrived is in it, unless one was cut off.

    Raises `WorkspaceBusy` while a run reads it.
    """
    with one_writer(root):
        try:
            held = FileLock(_reading(root), timeout=0).acquire()
        except Timeout:
            raise WorkspaceBusy(
                f"{root}: a run reads the raw store. Nothing was erased. Wait for it to end, then run again."
            ) from None
        with held:
            if not (root / ERASURE).exists():
                Versions(root).track(RAW, before=partial(_move_in, root))
            yield


def arrived_batches(root: Path) -> list[NamedBatch]:
    """Accepted batches that are not in the raw store yet: kind, the name that they will have, and where they are."""
    found = raw_batches(root / ARRIVED, within=root / ARRIVED)
    return [(source, f"{RAW}/{name}", path) for source, name, path in found]


def has_arrived(root: Path) -> bool:
    """True if anything waits beside the raw store: a batch, who sent one, a withdrawal."""
    return any(path.is_file() and not path.name.startswith(INCOMING) for path in (root / ARRIVED).rglob("*"))


def count_rows(batches: Sequence[Batch]) -> dict[str, int]:
    """Rows of each batch, by its digest."""
    return {batch.digest: batch.rows for batch in batches}


def _accept(root: Path, source: str | None, path: str | Path, intake: BatchChoices) -> Batch:
    batch = store_batch(path, source, root / ARRIVED, intake=intake)
    _refuse_erased(root, batch)
    final = root / RAW / batch.source / batch.path.name
    if not final.exists():
        return replace(batch, path=final)
    if sha256_file(final) != batch.digest:
        raise changed_batch(final, batch.digest)
    batch.path.unlink()
    return replace(batch, path=final, new=False)


def _refuse_erased(root: Path, batch: Batch) -> None:
    """Raise `UsageError` for a batch of which rows were erased, and keep nothing of it."""
    erased = {each.old_sha256: tombstone for tombstone in load_tombstones(root) for each in tombstone.batches}
    if batch.digest not in erased:
        return
    for path in batch.path.parent.glob(f".{batch.path.stem.partition('.')[0]}.*"):
        path.unlink()
    batch.path.unlink()
    raise UsageError(
        f"{batch.given}: expected feedback that was not erased, found a batch with rows that were "
        f"{erased[batch.digest].text} Nothing of it was kept; give a file without those rows."
    )


def _require_erased(root: Path) -> None:
    if (root / ERASURE).exists():
        raise WorkspaceBusy(
            f"{root}: an erasure was cut off, or found texts that are left. `plumbline erase --resume` completes it."
        )


def _bring_in(root: Path) -> None:
    """Move what arrived into the raw store and version that, unless a run reads it. Only for the one writer."""
    _require_erased(root)
    try:
        with FileLock(_reading(root), timeout=0):
            Versions(root).track(RAW, before=partial(_move_in, root))
    except Timeout:
        _logger.info("%s: a run reads the raw store; what arrived comes in when it has ended", root)


def _bring_in_after(root: Path) -> None:
    """As `_bring_in` at the end of a run, whose own outcome stands whatever becomes of this."""
    if not has_arrived(root):
        return
    try:
        version_raw(root)
    except PlumblineError as error:
        _logger.warning("what arrived during the run stays in %s, for the next command: %s", root / ARRIVED, error)


def _move_in(root: Path) -> None:
    """Move everything that arrived to its place, who sent a batch before the batch. Repeating it is free."""
    (root / RAW).mkdir(parents=True, exist_ok=True)  # absent where an empty store was cloned
    files = [path for path in (root / ARRIVED).rglob("*") if path.is_file() and not path.name.startswith(INCOMING)]
    for path in sorted(files, key=lambda path: (not path.name.startswith("."), path)):
        final = root / RAW / path.relative_to(root / ARRIVED)
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.exists():
            _drop_known(path, final)
        else:
            _move(path, final)
    for leftover in (root / RAW).rglob(f"{INCOMING}*"):  # of an older version, or of a move between file systems
        leftover.unlink()


def _drop_known(path: Path, final: Path) -> None:
    digest = sha256_file(path)
    if sha256_file(final) != digest:
        raise changed_batch(final, digest)
    path.unlink()


def _move(path: Path, final: Path) -> None:
    try:
        path.rename(final)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # the store is on another file system: whole there before it has its name
        copy = final.with_name(f"{INCOMING}{final.name}")
        copy.unlink(missing_ok=True)
        shutil.copy2(path, copy)
        os.replace(copy, final)
        path.unlink()


def _reading(root: Path) -> Path:
    """The lock of whoever needs the raw store as it is, or changes it."""
    return root / ".plumbline" / "raw.lock"


@contextmanager
def one_writer(root: Path) -> Iterator[None]:
    """One process at a time beside the raw store: a second would sweep the first's temporary file away.

    Inside, no feedback comes in and none moves from where it waits into the store.
    """
    lock = root / ".plumbline" / "ingest.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        yield
