"""Rows of feedback files, whatever they hold: a line of JSON becomes a record, or is set aside with a reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from data_contracts.contract_suite import excerpt
from data_contracts.nesting import MAX_LEVELS, deeper_than, levels
from data_contracts.records import Feedback, Origin, Quarantined
from tasks.feedback.containers import read_lines
from tasks.feedback.defects import Defect
from tasks.feedback.formats import EXTRAS
from tasks.feedback.senders import senders_of

UNRECOGNISED = "unrecognised"

Rows = Path | Sequence[bytes]
"""A file, or the JSON texts of its rows."""


@dataclass(frozen=True, slots=True)
class ReadRow:
    """One row as read: the record it holds, or why it holds none.

    `format` is the row's format by the name of its source, or "unrecognised". `label` is the row's own a, b or tie, or
    up or down; null for formats without a label.
    """

    line: int
    raw: str
    format: str
    outcome: Feedback | Quarantined
    label: str | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """How rows of one kind of feedback are read; each part raises `Defect`.

    `recognise` gives a row's format, `build` the record of a row in that format, `label` the label it carries.
    """

    recognise: Callable[[Mapping[str, Any]], str]
    build: Callable[[Mapping[str, Any], str, Origin], Feedback]
    label: Callable[[Mapping[str, Any]], str | None]


def read_rows(rows: Rows, origin: str, reading: Reading) -> Iterator[ReadRow]:
    """Read every row, streamed, in order; `origin` names the file in records and quarantine.

    Raises `UsageError` when the file itself cannot be read.
    """
    senders = senders_of(rows) if isinstance(rows, Path) else lambda line: ()
    for line, text in read_lines(rows) if isinstance(rows, Path) else enumerate(rows, 1):
        yield _read_row(text, Origin(file=origin, line=line, senders=senders(line)), reading)


def _read_row(text: bytes, origin: Origin, reading: Reading) -> ReadRow:
    raw = text.decode("utf-8", errors="backslashreplace")
    form, row = UNRECOGNISED, dict[str, Any]()
    try:
        row = _parse(text)
        form = reading.recognise(row)
        return ReadRow(origin.line, raw, form, reading.build(row, form, origin), reading.label(row))
    except Defect as defect:
        return ReadRow(origin.line, raw, form, _quarantined(defect, origin, row, raw), reading.label(row))


def about(row: Mapping[str, Any], source: str) -> dict[str, Any]:
    """What any record says of itself: `source` (the given one where the row names none), annotator, time, metadata."""
    return {
        "source": _optional_text(row, "source") or source,
        "annotator": identifier(row, "annotator"),
        "timestamp": _optional_text(row, "timestamp"),
        "metadata": _metadata(row),
    }


def _parse(text: bytes) -> dict[str, Any]:
    """A line's JSON object, without its null fields."""
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"byte 0x{text[error.start]:02x} at position {error.start + 1}"
        raise Defect("bad_encoding", None, "UTF-8 text", found) from error
    if deeper_than(text, MAX_LEVELS):
        raise Defect("too_deep", None, f"at most {MAX_LEVELS} levels of lists and objects", f"{levels(text)}")
    try:
        row = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise Defect("broken_json", None, "a JSON object", str(error)) from error
    if not isinstance(row, dict):
        raise Defect("wrong_type", None, "a JSON object", excerpt(row))
    return {name: value for name, value in row.items() if value is not None}


def identifier(row: Mapping[str, Any], field: str) -> str | None:
    """A name given as a string or a whole number; null when the row has none."""
    value = row.get(field)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise Defect("wrong_type", field, "a string or a whole number", excerpt(value))


def _optional_text(row: Mapping[str, Any], field: str) -> str | None:
    value = row.get(field)
    if value is None or isinstance(value, str):
        return value
    raise Defect("wrong_type", field, "a string", excerpt(value))


def _metadata(row: Mapping[str, Any]) -> dict[str, Any]:
    """Fields `meta` and `metadata` as one, and the known extras beside their entries."""
    metadata: dict[str, Any] = {}
    for field in ("meta", "metadata"):
        value = row.get(field, {})
        if not isinstance(value, dict):
            raise Defect("wrong_type", field, "an object", excerpt(value))
        metadata.update(value)
    return metadata | {name: row[name] for name in EXTRAS if name in row}


def _quarantined(defect: Defect, origin: Origin, row: Mapping[str, Any], raw: str) -> Quarantined:
    record_id = row.get("id")
    return Quarantined(
        reason=defect.reason,
        file=origin.file,
        line=origin.line,
        field=defect.field,
        expected=defect.expected,
        found=defect.found,
        record_id=record_id if isinstance(record_id, str) else None,
        raw=raw,
        senders=origin.senders,
    )
