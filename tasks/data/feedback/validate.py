"""Hold feedback to its contract: every row read becomes accepted or quarantined, with a reason.

Writes into a folder:

- `accepted.jsonl`: `PreferencePair`, in the order read;
- `unpaired.jsonl`: `UnpairedResponse`, in the order read; only if there are files of single responses;
- `quarantine.jsonl`: `Quarantined`, one per row that was set aside, with the row as read;
- `report.json`: the account of `FeedbackAccounts.report`.

Rows are read and checked 10,000 at a time, so memory holds one piece and a digest for each id.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import groupby, islice
from pathlib import Path
from typing import IO, Any

import orjson

from plumbline.data_contracts.artifact import full_disk_as_stage_error, write_json
from plumbline.data_contracts.contract_suite import KnownIds, Violation
from plumbline.data_contracts.errors import ContractViolation, UnreadableFile, UsageError
from plumbline.data_contracts.preference_pair import check_pairs
from plumbline.data_contracts.progress import Progress, silent
from plumbline.data_contracts.records import Feedback, PreferencePair, Quarantined, UnpairedResponse
from plumbline.data_contracts.unpaired_response import check_unpaired
from plumbline.tasks.data.feedback import SOURCES, UNPAIRED
from plumbline.tasks.data.feedback.accounts import FeedbackAccounts, FileAccount, Report, describe, objections
from plumbline.tasks.data.feedback.defects import ID_REUSED, Note
from plumbline.tasks.data.feedback.personal_data import Protect, keep, protection
from plumbline.tasks.data.feedback.rows import ReadRow
from plumbline.tasks.data.feedback.withdrawals import NONE, Withdrawals
from plumbline.tasks.params.feedback import FeedbackParams
from plumbline.tasks.params.feedback_limits import LIMITS, Limits

NamedBatch = tuple[str, str, Path]
"""A kind of feedback, the name of a file in records, and the file itself."""

_PIECE = 10_000  # rows checked at a time
_REPORT_FILES = ("report.json", "quarantine.jsonl")


def raw_batches(folder: Path, within: Path) -> list[NamedBatch]:
    """The batches in a folder: files in a subfolder named by their kind, or named `<kind>.<anything>`.

    Sorted by name, hidden files left out; an absent folder holds none. Names are relative to `within`.
    Raises `UsageError` for a file of a kind that is not in `SOURCES`.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    batches = []
    for path in files:
        source = path.name.partition(".")[0] if path.parent == folder else path.relative_to(folder).parts[0]
        batches.append((_known_source(source, path), path.relative_to(within).as_posix(), path))
    return batches


def validate(
    batches: Sequence[NamedBatch],
    params: FeedbackParams,
    folder: Path,
    *,
    report_to: Path | None = None,
    needs_pairs: bool = True,
    withdrawn: Withdrawals = NONE,
    skip_unreadable: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Read every batch, run the contract, write the files into `folder` and return the counts.

    Raises `UsageError` without batches or for an unreadable file, `StageError` when an expectation cannot
    be run or the disk is full, and `ContractViolation` when no row is valid, too many are quarantined or a
    file's labels are all the same (see `FeedbackParams`). Before the last, `report.json` and
    `quarantine.jsonl` are copied into `report_to`, and the message names them: `folder` may be a draft
    that the caller removes. `needs_pairs`: whether single responses alone stop the run. `withdrawn`: what is set
    aside unread, since nobody is to use it. `skip_unreadable`: a file that cannot be read is left out, with a warning,
    as one in an append-only store has to be.
    """
    if not batches:
        raise UsageError(
            "no feedback: expected at least one file, found none. Set feedback.path, run `plumbline ingest "
            "human_pairs FILE`, or switch the sample world on (sample_world.enabled: true)."
        )
    with full_disk_as_stage_error(folder):
        report = sort_rows(
            batches, params, folder, withdrawn=withdrawn, skip_unreadable=skip_unreadable, progress=progress
        )
        stops, warnings = objections(report, params, needs_pairs=needs_pairs)
        report["warnings"] = warnings
        write_json(folder / "report.json", report)
        if stops:
            kept = _keep_report(folder, report_to)
            raise ContractViolation("\n".join([*stops, describe(report), *kept]))
    return {name: value for name, value in report.items() if name not in ("checks", "batches")}


def check_rows(
    source: str, rows: Sequence[bytes], origin: str, limits: Limits = LIMITS, protect: Protect = keep
) -> list[Feedback | Quarantined]:
    """The verdict on each row, given as its JSON text: `validate` for a few rows, without files.

    A row that gives several pairs is accepted if one of them is. The contract is checked by its plain equivalent: the
    same verdicts in microseconds. A run validates the rows anew. `protect`: what params do with personal data.
    """
    found: dict[int, Feedback | Quarantined] = {}
    for row, outcome in _check(list(map(protect, SOURCES[source](rows, origin, limits))), KnownIds(), plainly=True):
        if row.line not in found or (isinstance(found[row.line], Quarantined) and not isinstance(outcome, Quarantined)):
            found[row.line] = outcome
    return [found[line] for line in sorted(found)]


def checked_rows(
    batch: NamedBatch, params: FeedbackParams, known: KnownIds, withdrawn: Withdrawals = NONE
) -> Iterator[tuple[ReadRow, Feedback | Quarantined]]:
    """Each row of a batch and its outcome, streamed; the contract is checked by its plain equivalent.

    `known` carries the ids of earlier batches. Raises `UsageError` for a file that cannot be read.
    """
    source, origin, path = batch
    rows = SOURCES[_known_source(source, path)](path, origin, params.limits().of_stored(), params.rules())
    while piece := list(islice(rows, _PIECE)):
        yield from _check([_unless_withdrawn(row, withdrawn) for row in piece], known, plainly=True)


def sort_rows(
    batches: Sequence[NamedBatch],
    params: FeedbackParams,
    folder: Path,
    *,
    withdrawn: Withdrawals = NONE,
    skip_unreadable: bool = False,
    progress: Progress = silent,
) -> Report:
    """Write every row into the file of its outcome, and return the account (`FeedbackAccounts.report`).

    No rule on whole data sets is applied: a part of one may hold single responses or one label alone.
    """
    accounts, known, protect = FeedbackAccounts(), KnownIds(), protection(params)
    with ExitStack() as files:
        accepted, quarantine = (
            files.enter_context((folder / name).open("wb")) for name in ("accepted.jsonl", "quarantine.jsonl")
        )
        kept = {False: accepted}
        if any(source in UNPAIRED for source, _, _ in batches):
            kept[True] = files.enter_context((folder / "unpaired.jsonl").open("wb"))
        for done, (source, origin, path) in enumerate(batches):
            entry = accounts.open_batch(origin, source, unpaired=source in UNPAIRED)
            rows = SOURCES[_known_source(source, path)](path, origin, params.limits().of_stored(), params.rules())
            while piece := _next_piece(rows, entry, skip=skip_unreadable):
                for row, outcome in _check([protect(_unless_withdrawn(row, withdrawn)) for row in piece], known):
                    entry.count(row, outcome)
                    _write(quarantine if isinstance(outcome, Quarantined) else kept[entry.unpaired], outcome)
                progress(done, len(batches), f"{accounts.read:,} rows read")
            progress(done + 1, len(batches), f"{accounts.read:,} rows read")
    return accounts.report(single_label_rows=params.single_label_rows, personal_data=params.personal_data)


def _next_piece(rows: Iterator[ReadRow], entry: FileAccount, *, skip: bool) -> list[ReadRow]:
    """The next rows of a file, none at its end; with `skip`, those before the place from which it cannot be read."""
    piece: list[ReadRow] = []
    try:
        for row in islice(rows, _PIECE):
            piece.append(row)
    except UnreadableFile as error:
        if not skip:
            raise
        entry.skipped = str(error)
    return piece


def _check(
    piece: Sequence[ReadRow], known: KnownIds, *, plainly: bool = False
) -> Iterator[tuple[ReadRow, Feedback | Quarantined]]:
    """Each row of a piece of one file and its outcome once its contract has run over the records."""
    piece = [_settle(row, known) for row in piece]
    pairs = [row.outcome for row in piece if isinstance(row.outcome, PreferencePair)]
    singles = [row.outcome for row in piece if isinstance(row.outcome, UnpairedResponse)]
    assert not (pairs and singles), "a file holds records of one kind"
    found = [*check_pairs(pairs, known, plainly=plainly), *check_unpaired(singles, known, plainly=plainly)]
    grouped = groupby(found, key=lambda violation: violation.index)
    blamed = {index: list(violations) for index, violations in grouped}
    position = 0
    for row in piece:
        if isinstance(row.outcome, Quarantined):
            yield row, row.outcome
        else:
            violations = blamed.get(position)
            position += 1
            yield row, _refuse(row, row.outcome, violations) if violations else row.outcome


def _unless_withdrawn(row: ReadRow, withdrawn: Withdrawals) -> ReadRow:
    """The row; one that was withdrawn has neither a record nor a label, so that it counts for nothing else."""
    outcome = withdrawn.apply(row.outcome, row.raw)
    return row if outcome is row.outcome else replace(row, outcome=outcome, label=None)


def _settle(row: ReadRow, known: KnownIds) -> ReadRow:
    """The row, with a note where an earlier file gave its id to other content, and it goes by its content's id."""
    record = row.outcome
    if isinstance(record, Quarantined):
        return row
    settled = known.settle(record)
    if settled is record:
        return row
    return replace(row, outcome=settled, notes=(*row.notes, Note(ID_REUSED, "id", str(settled.given_id))))


def _refuse(row: ReadRow, record: Feedback, violations: Sequence[Violation]) -> Quarantined:
    first, *others = violations
    also = "".join(f"; also {other.field}: {other.reason}" for other in others)
    return Quarantined(
        reason=first.reason,
        file=record.origin.file,
        line=record.origin.line,
        field=first.field,
        expected=first.expected,
        found=first.found + also,
        record_id=record.given_id or record.id,
        raw=row.raw,
        senders=record.origin.senders,
    )


def _write(file: IO[bytes], record: Feedback | Quarantined) -> None:
    file.write(orjson.dumps(record.model_dump(mode="json"), option=orjson.OPT_SORT_KEYS) + b"\n")


def _keep_report(folder: Path, report_to: Path | None) -> list[str]:
    """Copy the report and quarantine to where they outlive a draft; returns the line that says so."""
    if report_to is None:
        return []
    report_to.mkdir(parents=True, exist_ok=True)
    for name in _REPORT_FILES:
        shutil.copyfile(folder / name, report_to / name)
    return [f"Every row set aside: {report_to / 'quarantine.jsonl'}; the account: {report_to / 'report.json'}."]


def _known_source(source: str, path: Path) -> str:
    if source not in SOURCES:
        raise UsageError(f"{path}: expected feedback of a known kind ({', '.join(SOURCES)}), found {source!r}.")
    return source
