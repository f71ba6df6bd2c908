"""Rows of feedback files, whatever they hold: a line of JSON becomes a record, or is set aside with a reason."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from plumbline.data_contracts.contract_suite import excerpt, shorten
from plumbline.data_contracts.nesting import MAX_LEVELS, deeper_than, levels
from plumbline.data_contracts.records import Feedback, Origin, Quarantined
from plumbline.tasks.data.feedback.containers import read_lines
from plumbline.tasks.data.feedback.defects import NOT_A_NUMBER, Defect, Note
from plumbline.tasks.data.feedback.formats import EXTRAS, OPTIONAL
from plumbline.tasks.data.feedback.senders import senders_of
from plumbline.tasks.params.feedback_limits import LIMITS, Limits

UNRECOGNISED = "unrecognised"

_NUMBER_OR_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|-?\bInfinity\b|\bNaN\b', re.DOTALL)
_NO_NUMBER = "\x00not a number\x00"  # in place of NaN: no JSON text of a person has these bytes unescaped
_MAY_LACK = OPTIONAL | EXTRAS | {"thumb"}
_SHOWN = 500  # bytes kept of a row that is too long

Rows = Path | Sequence[bytes]
"""A file, or the JSON texts of its rows."""


@dataclass(frozen=True, slots=True)
class ReadRow:
    """One row as read: the record it holds, or why it holds none.

    `format` is the row's format by the name of its source, or "unrecognised". `label` is the row's own a, b or tie, or
    up or down; null for formats without a label. `notes` say what was left out of a row that was read all the same;
    `unknown` are all its fields that no format knows.
    """

    line: int
    raw: str
    format: str
    outcome: Feedback | Quarantined
    label: str | None = None
    notes: tuple[Note, ...] = ()
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RowReading:
    """The functions that read rows of one kind of feedback; each raises `Defect`.

    `recognise` gives a row's format, `build` the record of a row in that format, `label` the label it carries.
    """

    recognise: Callable[[Mapping[str, Any]], str]
    build: Callable[[Mapping[str, Any], str, Origin], Feedback]
    label: Callable[[Mapping[str, Any]], str | None]


def read_rows(rows: Rows, origin: str, reading: RowReading, limits: Limits = LIMITS) -> Iterator[ReadRow]:
    """Read every row, streamed, in order; `origin` names the file in records and quarantine.

    Raises `UsageError` when the file itself cannot be read.
    """
    senders = senders_of(rows) if isinstance(rows, Path) else lambda line: ()
    for line, text in read_lines(rows, origin, limits) if isinstance(rows, Path) else enumerate(rows, 1):
        yield _read_row(text, Origin(file=origin, line=line, senders=senders(line)), reading, limits)


def _read_row(text: bytes, origin: Origin, reading: RowReading, limits: Limits) -> ReadRow:
    if len(text) > limits.max_row_bytes:
        return _too_long(text, origin, limits)
    raw = text.decode("utf-8", errors="backslashreplace")
    form, row, notes = UNRECOGNISED, dict[str, Any](), tuple[Note, ...]()
    try:
        row, notes = _parse(text)
        form = reading.recognise(row)
        return ReadRow(origin.line, raw, form, reading.build(row, form, origin), reading.label(row), notes)
    except Defect as defect:
        found = _quarantined(defect, origin, row, raw)
        return ReadRow(origin.line, raw, form, found, reading.label(row), notes, defect.unknown)


def _too_long(text: bytes, origin: Origin, limits: Limits) -> ReadRow:
    """A row over the limit, of which only the beginning is kept."""
    raw = text[:_SHOWN].decode("utf-8", errors="backslashreplace") + "…"
    expected = f"at most {limits.max_row_bytes:,} bytes (feedback.max_row_bytes)"
    defect = Defect("too_long", None, expected, f"more, starting with {shorten(raw)}")
    return ReadRow(origin.line, raw, UNRECOGNISED, _quarantined(defect, origin, {}, raw))


def about(row: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The fields that any record has: `source` (the given one if the row names none), annotator, time, metadata."""
    return {
        "source": _optional_text(row, "source") or source,
        "annotator": identifier(row, "annotator"),
        "timestamp": _optional_text(row, "timestamp"),
        "metadata": _metadata(row),
    }


def _parse(text: bytes) -> tuple[dict[str, Any], tuple[Note, ...]]:
    """A line's JSON object, without its null fields, and notes of the fields that held NaN or an infinity."""
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
        row = _with_numbers_named(text, error)
    if not isinstance(row, dict):
        raise Defect("wrong_type", None, "a JSON object", excerpt(row))
    notes = tuple(Note(NOT_A_NUMBER, place, "NaN or an infinity") for place in _drop_no_numbers(row))
    return {name: value for name, value in row.items() if value is not None}, notes


def _with_numbers_named(text: bytes, error: orjson.JSONDecodeError) -> Any:
    """A text that is JSON but for NaN and Infinity, as pandas and Python write them, with a mark in their place."""
    if b"NaN" in text or b"Infinity" in text:
        mark = orjson.dumps(_NO_NUMBER)
        named = _NUMBER_OR_STRING.sub(lambda found: found[0] if found[0].startswith(b'"') else mark, text)
        try:
            return orjson.loads(named)
        except orjson.JSONDecodeError:
            pass  # it is broken beside: reported from the text as it came
    raise Defect("broken_json", None, "a JSON object", str(error)) from error


def _drop_no_numbers(row: dict[str, Any]) -> list[str]:
    """Take the marks out, in place; returns the fields that they were in.

    A text or label that the format needs keeps NaN itself, for its reader to refuse.
    """
    dropped = [name for name, value in row.items() if _holds_mark(value)]
    for name in dropped:
        value = row[name]
        row[name] = None if value == _NO_NUMBER and name in _MAY_LACK else _without_marks(value)
    return [name for name in dropped if name in _MAY_LACK]


def _holds_mark(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_mark, value.values()))
    return any(map(_holds_mark, value)) if isinstance(value, list) else value == _NO_NUMBER


def _without_marks(value: Any) -> Any:
    """A value with None for each mark inside of it; NaN for one that is all of it."""
    if isinstance(value, dict):
        return {name: None if item == _NO_NUMBER else _without_marks(item) for name, item in value.items()}
    if isinstance(value, list):
        return [None if item == _NO_NUMBER else _without_marks(item) for item in value]
    return float("nan") if value == _NO_NUMBER else value


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
    given = row.get("id")
    named = isinstance(given, str | int) and not isinstance(given, bool)
    return Quarantined(
        reason=defect.reason,
        file=origin.file,
        line=origin.line,
        field=defect.field,
        expected=defect.expected,
        found=defect.found,
        record_id=str(given) if named else None,
        raw=raw,
        senders=origin.senders,
    )
