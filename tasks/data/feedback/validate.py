"""Hold feedback to its contract: every row read becomes accepted or quarantined, with a reason.

Writes into a folder:

- `accepted.jsonl`: `PreferencePair`, in the order read;
- `unpaired.jsonl`: `UnpairedResponse`, in the order read; only if there are files of single responses;
- `quarantine.jsonl`: `Quarantined`, one per row that was set aside, with the row as read;
- `report.json`: the account of `FeedbackAccounts.report`.

Rows are read and checked 40,000 at a time, so memory holds one piece and a digest for each id.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import orjson

from plumbline.data_contracts.artifact import full_disk_as_stage_error, write_json
from plumbline.data_contracts.contract_suite import Fields, KnownIds, Violation
from plumbline.data_contracts.errors import ContractViolation, UnreadableFile, UsageError
from plumbline.data_contracts.preference_pair import check_pair_fields
from plumbline.data_contracts.progress import Progress, silent
from plumbline.data_contracts.records import Feedback, Quarantined, UnpairedResponse
from plumbline.data_contracts.unpaired_response import check_response_fields
from plumbline.tasks.data.feedback import QUICK, SOURCES, UNPAIRED
from plumbline.tasks.data.feedback.accounts import FeedbackAccounts, FileAccount, Report, describe, objections
from plumbline.tasks.data.feedback.defects import ID_REUSED, Note
from plumbline.tasks.data.feedback.rows import ReadRow
from plumbline.tasks.data.feedback.usual_pairs import UsualRow
from plumbline.tasks.data.feedback.withdrawals import NONE, Withdrawals, named_in
from plumbline.tasks.params.feedback import FeedbackParams
from plumbline.tasks.params.feedback_limits import LIMITS, Limits

NamedBatch = tuple[str, str, Path]
"""A kind of feedback, the name of a file in records, and the file itself."""

_PIECE = 40_000  # rows checked at a time
_REPORT_FILES = ("report.json", "quarantine.jsonl")

Row = ReadRow | UsualRow
"""A row as read, with its record, or its record's fields alone."""


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
    source: str, rows: Sequence[bytes], origin: str, limits: Limits = LIMITS
) -> list[Feedback | Quarantined]:
    """The verdict on each row, given as its JSON text: `validate` for a few rows, without files.

    A row that gives several pairs is accepted if one of them is. The contract is checked by its plain equivalent: the
    same verdicts in microseconds. A run validates the rows anew.
    """
    found: dict[int, Feedback | Quarantined] = {}
    for row, outcome in _check(list(SOURCES[source](rows, origin, limits)), KnownIds(), plainly=True):
        assert isinstance(row, ReadRow), "a source reads whole records"
        verdict = outcome if isinstance(outcome, Quarantined) else row.outcome
        if row.line not in found or (isinstance(found[row.line], Quarantined) and not isinstance(verdict, Quarantined)):
            found[row.line] = verdict
    return [found[line] for line in sorted(found)]


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
    accounts, known = FeedbackAccounts(), KnownIds()
    with ExitStack() as files:
        accepted, quarantine = (
            files.enter_context((folder / name).open("wb")) for name in ("accepted.jsonl", "quarantine.jsonl")
        )
        kept = {False: accepted}
        if any(source in UNPAIRED for source, _, _ in batches):
            kept[True] = files.enter_context((folder / "unpaired.jsonl").open("wb"))
        for done, (source, origin, path) in enumerate(batches):
            entry = accounts.open_batch(origin, source, unpaired=source in UNPAIRED)
            rows = QUICK[_known_source(source, path)](path, origin, params.limits().of_stored(), params.rules())
            while piece := _next_piece(rows, entry, skip=skip_unreadable):
                for row, outcome in _check([_unless_withdrawn(row, withdrawn) for row in piece], known):
                    _count(entry, row, outcome)
                    if isinstance(outcome, Quarantined):
                        quarantine.write(_line(outcome.model_dump(mode="json")))
                    else:
                        kept[entry.unpaired].write(_line(outcome))
                progress(done, len(batches), f"{accounts.read:,} rows read")
            progress(done + 1, len(batches), f"{accounts.read:,} rows read")
    return accounts.report(single_label_rows=params.single_label_rows)


def _next_piece(rows: Iterator[Row], entry: FileAccount, *, skip: bool) -> list[Row]:
    """The next rows of a file, none at its end; with `skip`, those before the place from which it cannot be read."""
    piece: list[Row] = []
    try:
        for row in islice(rows, _PIECE):
            piece.append(row)
    except UnreadableFile as error:
        if not skip:
            raise
        entry.skipped = str(error)
    return piece


def _check(
    piece: Sequence[Row], known: KnownIds, *, plainly: bool = False
) -> Iterator[tuple[Row, Fields | Quarantined]]:
    """Each row of a piece of one file and its outcome once its contract has run over the records' fields."""
    piece = [_settle(row, known) for row in piece]
    sound = [row for row in piece if isinstance(row, UsualRow) or not isinstance(row.outcome, Quarantined)]
    records = [_fields(row) for row in sound]
    singles = any(isinstance(row, ReadRow) and isinstance(row.outcome, UnpairedResponse) for row in sound)
    conflicts = [_conflict(row, known) for row in sound]
    check = check_response_fields if singles else check_pair_fields
    grouped = groupby(check(records, conflicts, plainly=plainly), key=lambda violation: violation.index)
    blamed = {index: list(violations) for index, violations in grouped}
    outcomes = (
        _refuse(row, fields, blamed[index]) if index in blamed else fields
        for index, (row, fields) in enumerate(zip(sound, records, strict=True))
    )
    for row in piece:
        yield row, row.outcome if isinstance(row, ReadRow) and isinstance(row.outcome, Quarantined) else next(outcomes)


def _fields(row: Row) -> Fields:
    return row.fields if isinstance(row, UsualRow) else row.outcome.model_dump(mode="json")


def _conflict(row: Row, known: KnownIds) -> str:
    if isinstance(row, UsualRow):
        return known.conflict_of(row.fields["id"], None, row.digest, row.fields["origin"]["file"], row.line)
    assert not isinstance(row.outcome, Quarantined)
    return known.conflict(row.outcome)


def _unless_withdrawn(row: Row, withdrawn: Withdrawals) -> Row:
    """The row; one that was withdrawn has neither a record nor a label, so that it counts for nothing else."""
    if not withdrawn.in_force:
        return row
    if isinstance(row, UsualRow):
        origin = row.fields["origin"]
        judges = named_in(row.fields["annotator"], row.fields["metadata"])
        if withdrawn.covering(origin["file"], origin.get("senders", ()), judges) is None:
            return row
        row = row.as_read()
    outcome = withdrawn.apply(row.outcome, row.raw)
    return row if outcome is row.outcome else replace(row, outcome=outcome, label=None)


def _settle(row: Row, known: KnownIds) -> Row:
    """The row, with a note where an earlier file gave its id to other content, and it goes by its content's id."""
    if isinstance(row, UsualRow):
        if not known.is_taken(row.fields["id"], row.digest, row.fields["origin"]["file"], row.line):
            return row
        row = row.as_read()
    record = row.outcome
    if isinstance(record, Quarantined):
        return row
    settled = known.settle(record)
    if settled is record:
        return row
    return replace(row, outcome=settled, notes=(*row.notes, Note(ID_REUSED, "id", str(settled.given_id))))


def _count(entry: FileAccount, row: Row, outcome: Fields | Quarantined) -> None:
    if isinstance(row, ReadRow):
        entry.count(row, outcome if isinstance(outcome, Quarantined) else row.outcome)
    elif isinstance(outcome, Quarantined):
        entry.count(row.as_read(), outcome)
    else:
        entry.count_accepted(row.format, row.label)


def _refuse(row: Row, record: Fields, violations: Sequence[Violation]) -> Quarantined:
    first, *others = violations
    origin = record["origin"]
    also = "".join(f"; also {other.field}: {other.reason}" for other in others)
    return Quarantined(
        reason=first.reason,
        file=origin["file"],
        line=origin["line"],
        field=first.field,
        expected=first.expected,
        found=first.found + also,
        record_id=record["given_id"] or record["id"],
        raw=row.raw if isinstance(row, ReadRow) else row.raw.decode(),
        senders=origin.get("senders", ()),
    )


def _line(record: Fields) -> bytes:
    return orjson.dumps(record, option=orjson.OPT_SORT_KEYS) + b"\n"


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
