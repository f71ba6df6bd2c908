"""Rows of raw batches to erase: found by a record, an annotator or a text, and the batch without them.

A batch without some of its rows is JSON lines, whatever it was before. Each row that stays keeps its line number: the
erased ones are blank lines, which readers skip, so that the origin of every other record still holds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from plumbline.data_contracts.artifact import write_read_only
from plumbline.data_contracts.errors import UsageError
from plumbline.data_contracts.records import Feedback, PreferencePair, Quarantined, UnpairedResponse
from plumbline.tasks.data.feedback import SOURCES
from plumbline.tasks.data.feedback.containers import read_lines
from plumbline.tasks.data.feedback.formats import READER
from plumbline.tasks.data.feedback.rows import ReadRow
from plumbline.tasks.data.feedback.validate import NamedBatch
from plumbline.tasks.data.feedback.withdrawals import annotators_of
from plumbline.tasks.params.feedback_limits import LIMITS

Wanted = Callable[[ReadRow], bool]
_LIMITS = LIMITS.of_stored()
_TIMES = ("timestamp", "created_at", "updated_at", "tstamp")


@dataclass(slots=True)
class Found:
    """Rows to erase: lines by batch, and what they say. `contents` are content ids, `rows` how many rows were read."""

    lines: dict[str, set[int]] = field(default_factory=dict)
    texts: set[str] = field(default_factory=set)
    ids: set[str] = field(default_factory=set)
    contents: set[str] = field(default_factory=set)
    rows: int = 0

    @property
    def erased(self) -> int:
        """The number of rows to erase."""
        return sum(map(len, self.lines.values()))


def wanted_record(record: str) -> Wanted:
    """Rows of the record of this id, and the pairs of a list to which the source gave it."""

    def matches(row: ReadRow) -> bool:
        return any(name == record or name.startswith(f"{record}#") for name in ids_of(row))

    return matches


def wanted_annotator(name: str) -> Wanted:
    """Rows that this person judged, alone or with others."""
    return lambda row: name in people_of(row)


def wanted_text(pattern: str) -> Wanted:
    """Rows with a text in which the pattern occurs: as it is, or `/…/` for a regular expression.

    Raises `UsageError` for an expression that is none, or that matches the empty text.
    """
    expression = compiled(pattern)
    return lambda row: any(expression.search(text) for text in leaves(row.raw))


def compiled(pattern: str) -> re.Pattern[str]:
    """The regular expression of a pattern."""
    given = pattern[1:-1] if len(pattern) > 2 and pattern[0] == pattern[-1] == "/" else re.escape(pattern)
    try:
        expression = re.compile(given)
    except re.error as error:
        raise UsageError(f"--matching {pattern}: expected a text or a /regular expression/, found: {error}.") from error
    if expression.search(""):
        raise UsageError(f"--matching {pattern}: expected a pattern with a character, found one that matches nothing.")
    return expression


def find_rows(batches: Sequence[NamedBatch], wanted: Wanted) -> Found:
    """Every row that is wanted, and every other one that says the same: exact duplicates under other ids."""
    found = Found()
    for file, row in all_rows(batches):
        found.rows += 1
        if wanted(row):
            _add(found, file, row)
    if found.contents:
        for file, row in all_rows(batches):
            if _content(row.outcome) in found.contents:
                _add(found, file, row)
    return found


def kept_lines(batches: Sequence[NamedBatch], found: Found) -> Iterator[bytes]:
    """The JSON texts of all rows that stay."""
    for _, file, path in batches:
        erased = found.lines.get(file, set())
        yield from (text for line, text in read_lines(path, file, _LIMITS) if line not in erased)


def without_lines(path: Path, lines: Iterable[int]) -> bytes:
    """The bytes of a batch without these lines; nothing if no row is left."""
    erased, parts, place = frozenset(lines), [], 1
    for line, text in read_lines(path, path.name, _LIMITS):
        if line not in erased:
            parts.append(b"\n" * (line - place) + text + b"\n")
            place = line + 1
    return b"".join(parts)


def put_in_place(old: Path, new: Path | None, data: bytes) -> None:
    """Put the batch without its erased rows where the old one was: senders and maps first, the old batch last."""
    beside = sorted(old.parent.glob(f".{old.name.partition('.')[0]}.*"))
    if new is not None:
        for path in beside:
            renamed = path.name.replace(old.name.partition(".")[0], new.name.partition(".")[0], 1)
            _write_once(path.read_bytes(), path.with_name(renamed))
        _write_once(data, new)
    old.unlink(missing_ok=True)
    for path in beside:
        path.unlink(missing_ok=True)


def leaves(raw: str | bytes) -> Iterator[str]:
    """Every text in a row, keys left out; of a row that is no JSON the row itself."""
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        yield raw if isinstance(raw, str) else raw.decode("utf-8", "replace")
        return
    yield from texts_in(value, without=_TIMES)


def texts_in(value: object, without: Collection[str] = ()) -> Iterator[str]:
    """Every text in a JSON value, at any depth; the values of fields named in `without`, and all keys, are left out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, item in value.items():
            if name not in without:
                yield from texts_in(item, without)
    elif isinstance(value, list):
        for item in value:
            yield from texts_in(item, without)


def all_rows(batches: Sequence[NamedBatch]) -> Iterator[tuple[str, ReadRow]]:
    """Every row of batches with the name of its file."""
    for source, file, path in batches:
        for row in SOURCES[source](path, file, _LIMITS):
            yield file, row


def _add(found: Found, file: str, row: ReadRow) -> None:
    found.lines.setdefault(file, set()).update(_lines(row))
    found.ids.update(ids_of(row))
    outcome = row.outcome
    if isinstance(outcome, Quarantined):
        found.texts.update(leaves(row.raw))
        return
    found.texts.update(turn.content for turn in outcome.prompt)
    found.texts.update(_responses(outcome))
    if (content := _content(outcome)) is not None:
        found.contents.add(content)


def _lines(row: ReadRow) -> list[int]:
    """The lines that a record was read from: of a pair of rated responses those of both."""
    if isinstance(row.outcome, PreferencePair) and READER[row.format].kind in ("rating", "opinion"):
        return list(row.outcome.metadata["lines"])
    return [row.line]


def _responses(record: Feedback) -> tuple[str, ...]:
    return (record.response,) if isinstance(record, UnpairedResponse) else (record.chosen, record.rejected)


def _content(outcome: Feedback | Quarantined) -> str | None:
    return None if isinstance(outcome, Quarantined) else outcome.content_id()


def ids_of(row: ReadRow) -> list[str]:
    """The ids of a row's record: its own, and the one that its source gave."""
    outcome = row.outcome
    names = [outcome.record_id] if isinstance(outcome, Quarantined) else [outcome.id, outcome.given_id]
    return [name for name in names if name is not None]


def people_of(row: ReadRow) -> tuple[str, ...]:
    """Everybody who judged a row."""
    return annotators_of(row.outcome, row.raw)


def _write_once(data: bytes, to: Path) -> None:
    if not to.exists():
        write_read_only(to, data)
