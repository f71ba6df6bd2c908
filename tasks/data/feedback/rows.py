"""Rows of feedback files, whatever they hold: a row of JSON becomes records, or is set aside with a reason."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import orjson

from plumbline.data_contracts.contract_suite import excerpt, shorten
from plumbline.data_contracts.errors import UsageError
from plumbline.data_contracts.nesting import MAX_LEVELS, deeper_than, levels
from plumbline.data_contracts.records import Feedback, Origin, Quarantined
from plumbline.tasks.data.feedback.columns import EXTRAS, OPTIONAL, number_of
from plumbline.tasks.data.feedback.containers import read_lines
from plumbline.tasks.data.feedback.defects import NOT_A_NUMBER, Defect, Note
from plumbline.tasks.data.feedback.detection import HEAD, meaning_of_numbers
from plumbline.tasks.data.feedback.mapping import mapped
from plumbline.tasks.data.feedback.readings import columns_of
from plumbline.tasks.data.feedback.senders import senders_of
from plumbline.tasks.data.feedback.verdicts import Numbers
from plumbline.tasks.params.feedback_limits import LIMITS, Limits

UNRECOGNISED = "unrecognised"

_NUMBER_OR_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|-?\bInfinity\b|\bNaN\b', re.DOTALL)
_NO_NUMBER = "\x00not a number\x00"  # in place of NaN: no JSON text of a person has these bytes unescaped
_MAY_LACK = OPTIONAL | EXTRAS | {"thumb"}
_EPOCH = (10**8, 10**10)  # seconds since 1970: the years 1973 to 2286
_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
)
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


class RowReading(Protocol):
    """The functions that read rows of one kind of feedback; each raises `Defect`."""

    def recognise(self, row: Mapping[str, Any]) -> str:
        """The format of a row."""

    def outcomes(self, row: Mapping[str, Any], form: str, origin: Origin) -> Iterable[Feedback | Defect]:
        """The records of a row in that format; none if they come with those of later rows."""

    def label(self, row: Mapping[str, Any], form: str) -> str | None:
        """The label that a row carries."""

    def rest(self) -> Iterator[ReadRow]:
        """The outcome of rows that belong together, once all were read."""


Usual = TypeVar("Usual")
Quick = Callable[[bytes, int, tuple[str, ...]], Usual | None]
"""A reading of the usual rows: text, line and senders of a row -> what it holds, or None for any other row."""


@dataclass(frozen=True, slots=True)
class FileHead:
    """Facts about all rows of a file: the meaning of numbers in its labels.

    `is_file`: false for rows that came by themselves, each to be judged by itself.
    """

    numbers: Numbers
    is_file: bool


def read_rows(
    rows: Rows,
    origin: str,
    begin: Callable[[FileHead], RowReading],
    limits: Limits = LIMITS,
    usual: Callable[[FileHead], Quick[Usual]] = lambda _: lambda text, line, senders: None,
) -> Iterator[ReadRow | Usual]:
    """Read every row, streamed, in order; `origin` names the file in records and quarantine.

    `begin` makes the reading of a file from what its head says; `usual` another one for rows in the usual shapes, tried
    first where there is no map. Raises `UsageError` when the file cannot be read.
    """
    senders = senders_of(rows) if isinstance(rows, Path) else lambda line: ()
    numbered = iter(read_lines(rows, origin, limits) if isinstance(rows, Path) else enumerate(rows, 1))
    head, damage = _head(numbered)
    columns = columns_of(rows) if isinstance(rows, Path) else {}
    # rows that came without a file may end up beside others, by which their numbers would mean something else
    numbers = meaning_of_numbers(parsed(head, columns, limits)) if isinstance(rows, Path) else {}
    facts = FileHead(numbers, isinstance(rows, Path))
    reading, quick = begin(facts), usual(facts)
    for line, text in chain(head, numbered):
        found = None if columns or len(text) > limits.max_row_bytes else quick(text, line, senders(line))
        if found is not None:
            yield found
            continue
        yield from read_row(text, Origin(file=origin, line=line, senders=senders(line)), reading, columns, limits)
    if damage is not None:
        raise damage
    yield from reading.rest()


def _head(numbered: Iterator[tuple[int, bytes]]) -> tuple[list[tuple[int, bytes]], UsageError | None]:
    """The first rows, and the damage that comes after them if they cannot be read to their end."""
    head: list[tuple[int, bytes]] = []
    try:
        for row in islice(numbered, HEAD):
            head.append(row)
    except UsageError as error:
        return head, error
    return head, None


def parsed(head: Iterable[tuple[int, bytes]], columns: Mapping[str, str], limits: Limits) -> list[dict[str, Any]]:
    """The rows of a head that are sound JSON objects, under the names of the map."""
    found = []
    for _, text in head:
        try:
            row = _parse(text)[0] if len(text) <= limits.max_row_bytes else {}
            found.append(mapped(row, columns) if columns else row)
        except Defect:
            continue
    return found


def read_row(
    text: bytes, origin: Origin, reading: RowReading, columns: Mapping[str, str], limits: Limits
) -> Iterator[ReadRow]:
    """All that one row gives: its records, or why it gives none."""
    if len(text) > limits.max_row_bytes:
        yield _too_long(text, origin, limits)
        return
    raw = text.decode("utf-8", errors="backslashreplace")
    form, row, notes = UNRECOGNISED, dict[str, Any](), tuple[Note, ...]()
    try:
        row, notes = _parse(text)
        row = mapped(row, columns) if columns else row
        form = reading.recognise(row)
        label = reading.label(row, form)
        for outcome in reading.outcomes(row, form, origin):
            found = set_aside(outcome, origin, row, raw) if isinstance(outcome, Defect) else outcome
            yield ReadRow(origin.line, raw, form, found, label, notes)
            label, notes = None, ()  # counted once
    except Defect as defect:
        found = set_aside(defect, origin, row, raw)
        yield ReadRow(origin.line, raw, form, found, reading.label(row, form), notes, defect.unknown)


def _too_long(text: bytes, origin: Origin, limits: Limits) -> ReadRow:
    """A row over the limit, of which only the beginning is kept."""
    raw = text[:_SHOWN].decode("utf-8", errors="backslashreplace") + "…"
    expected = f"at most {limits.max_row_bytes:,} bytes (feedback.max_row_bytes)"
    defect = Defect("too_long", None, expected, f"more, starting with {shorten(raw)}")
    return ReadRow(origin.line, raw, UNRECOGNISED, set_aside(defect, origin, {}, raw))


def about(row: Mapping[str, Any], source: str, metadata: dict[str, Any] | None = None) -> dict[str, Any]:
    """The fields that any record has: `source` (the given one if the row names none), annotator, time, metadata.

    `metadata`: that of the row, if it is known.
    """
    return {
        "source": _optional_text(row, "source") or source,
        "annotator": identifier(row, "annotator"),
        "timestamp": _timestamp(row),
        "metadata": metadata_of(row) if metadata is None else metadata,
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
    if isinstance(value, float) and value.is_integer():  # a column of whole numbers with gaps comes as floats
        return str(int(value))
    raise Defect("wrong_type", field, "a string or a whole number", excerpt(value))


def _timestamp(row: Mapping[str, Any]) -> str | None:
    """A time as given, or an epoch in seconds, milli-, micro- or nanoseconds as ISO 8601 in UTC."""
    value = row.get("timestamp")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        for unit in (1, 10**3, 10**6, 10**9):
            if _EPOCH[0] <= value / unit < _EPOCH[1]:
                return datetime.fromtimestamp(value / unit, UTC).isoformat().replace("+00:00", "Z")
        expected = "ISO 8601, or seconds since 1970 (or milli-, micro- or nanoseconds)"
        raise Defect("wrong_type", "timestamp", expected, excerpt(value))
    return _optional_text(row, "timestamp")


def _optional_text(row: Mapping[str, Any], field: str) -> str | None:
    value = row.get(field)
    if value is None or isinstance(value, str):
        return value
    raise Defect("wrong_type", field, "a string", excerpt(value))


def metadata_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Fields `meta` and `metadata` as one, and the known extras beside their entries.

    Scores of chosen and rejected give a margin where the row names none.
    """
    metadata: dict[str, Any] = {}
    for field in ("meta", "metadata"):
        value = row.get(field, {})
        if not isinstance(value, dict):
            raise Defect("wrong_type", field, "an object", excerpt(value))
        metadata.update(value)
    return metadata | with_margin({name: row[name] for name in EXTRAS if name in row})


def with_margin(facts: dict[str, Any]) -> dict[str, Any]:
    """Facts with the margin between two scores, unless they have one."""
    if "margin" in facts:
        return facts
    for names in _SCORES:
        chosen, rejected = (number_of(facts.get(name)) for name in names)
        if chosen is not None and rejected is not None:
            return facts | {"margin": chosen - rejected}
    return facts


def set_aside(defect: Defect, origin: Origin, row: Mapping[str, Any], raw: str) -> Quarantined:
    """The quarantine record of a row."""
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
