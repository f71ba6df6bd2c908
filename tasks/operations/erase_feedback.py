"""Verb: erase feedback for good, everywhere that can be reached, with a signed record that it was erased.

1. Find the rows, every place that holds their texts, and the versions that used them. Nothing is changed yet.
2. Write the journal: from here on a rerun completes what a crash left.
3. Put each batch without its erased rows in the place of the old one, and the signed tombstone beside it.
4. Delete objects from DVC's cache and remote; outputs, caches and lines of logs; captured traffic.
5. Add a line to the ledger.
6. Search everything again. If nothing is left, the journal goes; else it stays, and the report names what is left.

`plumbline withdraw` sets feedback aside for later runs and keeps it. This deletes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from plumbline.data_contracts.errors import CheckFailed, UsageError
from plumbline.tasks.data.feedback import removal
from plumbline.tasks.data.feedback.withdrawals import Withdrawal, keep_withdrawal, load_withdrawals
from plumbline.tasks.data.ingest_feedback import raw_to_change
from plumbline.tasks.data.validate_feedback import RAW
from plumbline.tasks.operations.erasure.journal import ErasureRequest, Journal, drop_journal, keep_journal, read_journal
from plumbline.tasks.operations.erasure.needles import Searcher
from plumbline.tasks.operations.erasure.places import Hits, remove_files, remove_objects, search
from plumbline.tasks.operations.erasure.plan import ErasureReport, plan
from plumbline.tasks.operations.serving import log
from plumbline.tasks.params.whole import Params
from plumbline.tasks.registry.ledger.ledger import open_ledger, record_erasure
from plumbline.tasks.registry.store.client import Store
from plumbline.tasks.storage.database import open_database
from plumbline.tasks.storage.database.sqlite import compact
from plumbline.tasks.storage.versioning.tombstones import ErasedLines, keep_tombstone
from plumbline.tasks.storage.versioning.workspace import Versions

_LONGEST_REASON = 1000
_SHOWN = 5

Confirm = Callable[[ErasureReport], bool]


def erase(
    root: Path, params: Params, request: ErasureRequest, *, reason: str, by: str, confirm: Confirm, large: bool = False
) -> ErasureReport:
    """Erase what is requested, once `confirm` says yes to the plan; a plan that is refused changes nothing.

    Call while no run is under way. An erasure that was cut off is completed first. `large`: a pattern may match more
    than a tenth of all rows. Raises `UsageError` for an unknown name, `VersioningError` if DVC's remote cannot be
    reached, `CheckFailed` if the last search found something, `SignatureError` without a key to sign by.
    """
    root, reason = root.resolve(), _reason(reason)
    with raw_to_change(root):
        if (journal := read_journal(root)) is not None:
            done = _complete(root, params, journal)
            if journal.request == request:
                return done
        journal = _planned(root, params, request, reason, by, large=large)
        report = ErasureReport(**journal.report)
        if not confirm(report):
            return report
        keep_journal(root, journal)
        return _complete(root, params, journal)


def _planned(root: Path, params: Params, request: ErasureRequest, reason: str, by: str, *, large: bool) -> Journal:
    engine = open_database(root, params.operations, log.METADATA)
    try:
        captured = (item for item, _ in log.interactions(engine))
        return plan(root, params, request, reason, by, captured, large=large)
    finally:
        engine.dispose()


def resume(root: Path, params: Params) -> ErasureReport:
    """Complete an erasure that was cut off, or that found something left. Raises `UsageError` if there is none."""
    root = root.resolve()
    with raw_to_change(root):
        if (journal := read_journal(root)) is None:
            raise UsageError(f"{root}: no erasure was cut off. Name what to erase.")
        return _complete(root, params, journal)


def _reason(text: str) -> str:
    text = " ".join(text.split()).rstrip(".")
    if not text or len(text) > _LONGEST_REASON or not text.isprintable():
        raise UsageError(f"--reason: expected 1 to {_LONGEST_REASON} printable characters, found {len(text)}. Say why.")
    return text


def _complete(root: Path, params: Params, journal: Journal) -> ErasureReport:
    """Every step from the journal on; each may be repeated."""
    for step in STEPS:
        step(root, params, journal)
    left = _left(root, journal)
    report = replace(ErasureReport(**journal.report), done=not left, left=left)
    if left:
        raise LeftOver(report)
    drop_journal(root)
    return report


class LeftOver(CheckFailed):
    """The last search of an erasure found something."""

    def __init__(self, report: ErasureReport) -> None:
        self.report = report
        super().__init__(
            f"erasure of {report.what}: expected no trace of it, found it in {', '.join(report.left[:_SHOWN])}"
            f"{' and more' if len(report.left) > _SHOWN else ''}. What could be erased was. Remove these by hand "
            f"(services that use a database: `plumbline down`), then `plumbline erase --resume` searches again. Until "
            f"then .plumbline/erasure.json keeps the texts to look for, and no run starts."
        )


def _left(root: Path, journal: Journal) -> list[str]:
    return search(root, Searcher(journal.needles)).left


def erase_raw(root: Path, params: Params, journal: Journal) -> None:
    """Step: the batches, withdrawals of them, and the tombstone."""

    def change() -> None:
        for batch in journal.tombstone.batches:
            _exchange(root, batch)
        keep_tombstone(root, journal.tombstone)

    Versions(root).retrack(RAW, change)


def _exchange(root: Path, batch: ErasedLines) -> None:
    old, new = root / batch.old, root / batch.new if batch.new else None
    known = load_withdrawals(root / RAW)
    standing = known.find("batch", batch.old)
    if standing is not None and batch.new and known.find("batch", batch.new) is None:
        keep_withdrawal(root / RAW, Withdrawal("batch", batch.new, standing.reason, standing.by, standing.at))
    if old.exists():
        removal.put_in_place(old, new, removal.without_lines(old, batch.lines))


def erase_objects(root: Path, params: Params, journal: Journal) -> None:
    """Step: objects of DVC's cache and remote."""
    remove_objects(root, set(journal.tombstone.objects))


def erase_files(root: Path, params: Params, journal: Journal) -> None:
    """Step: outputs of stages, caches and lines of logs."""
    hits = Hits(outputs=journal.hits["outputs"], caches=journal.hits["caches"], logs=journal.hits["logs"])
    remove_files(root, hits, Searcher(journal.needles))


def erase_databases(root: Path, params: Params, journal: Journal) -> None:
    """Step: captured traffic, and what deleted rows left in the files of databases."""
    engine = open_database(root, params.operations, log.METADATA)
    try:
        log.remove(engine, journal.traffic)
        if journal.request.kind == "annotator":
            log.remove_feedback_of(engine, journal.request.value)
    finally:
        engine.dispose()
    if journal.traffic or journal.hits["databases"]:
        names = {name.removesuffix("-wal").removesuffix("-shm") for name in journal.hits["databases"]}
        for name in sorted(names | {".plumbline/operations.db"}):
            if (root / name).is_file():
                compact(root / name)


def erase_on_record(root: Path, params: Params, journal: Journal) -> None:
    """Step: the line in the ledger, if there is a model."""
    engine = open_ledger(root, params.operations)
    try:
        record_erasure(engine, Store(root, params.registry), journal.tombstone)
    finally:
        engine.dispose()


STEPS = (erase_raw, erase_objects, erase_files, erase_databases, erase_on_record)
"""The steps after the journal, in order. Each is free to repeat."""
