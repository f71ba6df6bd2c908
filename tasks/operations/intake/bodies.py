"""Request bodies: bytes within bounds become rows, or are refused with the line or place that is wrong."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from plumbline.data_contracts.nesting import deeper_than, openers, without_strings

NDJSON, JSON = "application/x-ndjson", "application/json"

_GZIP = 31  # zlib: a gzip header and nothing else
_RATIO = 50
_MEMBERS = 64  # gzip streams of one body; each costs a copy of what follows
_SHOWN = 60


@dataclass(frozen=True, slots=True)
class BodyRow:
    """One row: its 1-based number (the line, or the place in a list) and its canonical JSON on one line."""

    number: int
    text: bytes


@dataclass(frozen=True, slots=True)
class Shape:
    """The bounds of one body's JSON: its rows, values in all, and levels of one row."""

    max_rows: int
    max_values: int
    max_depth: int


class BodyRefusal(Exception):
    """A request that is not taken: the status, a code for programs, a sentence for people, and where it is wrong."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        line: int | None = None,
        field: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.line, self.field = line, field
        self.headers = dict(headers or {})


def check_types(content_type: str | None, encoding: str | None) -> tuple[str, bool]:
    """The media type, and whether the body is gzip. Raises `BodyRefusal` (415)."""
    media = (content_type or "").partition(";")[0].strip().lower()
    if media not in (NDJSON, JSON):
        raise BodyRefusal(415, "unsupported_type", f"expected Content-Type {NDJSON} or {JSON}, found {_show(media)}.")
    coded = (encoding or "identity").strip().lower()
    if coded not in ("identity", "gzip"):
        raise BodyRefusal(415, "unsupported_encoding", f"expected Content-Encoding gzip or none, found {_show(coded)}.")
    return media, coded == "gzip"


def unzipped_most(size: int, limit: int) -> int:
    """The most bytes that a gzip body of `size` bytes may become: text shrinks 3 to 20 times, a bomb 1000 times."""
    return min(limit, _RATIO * size)


def unzip(data: bytes, limit: int) -> bytes:
    """Undo gzip, never holding more than `unzipped_most` bytes. Raises `BodyRefusal` (413, 400)."""
    most = unzipped_most(len(data), limit)
    found, rest = bytearray(), data
    try:
        for _ in range(_MEMBERS):
            member = zlib.decompressobj(_GZIP)
            found += member.decompress(rest, most + 1 - len(found))
            if len(found) > most:
                told = f"once gzip is undone the body is over {limit} bytes, or over {_RATIO} times what was sent"
                raise BodyRefusal(413, "too_large", f"{told}. Send the rows in parts, or plain.")
            if not member.eof:
                raise BodyRefusal(400, "bad_gzip", "the gzip body ends before its end. Send it again.")
            rest = member.unused_data
            if not rest:
                return bytes(found)
    except zlib.error as error:
        raise BodyRefusal(400, "bad_gzip", f"the body is not gzip: {error}.") from error
    raise BodyRefusal(400, "bad_gzip", f"the gzip body has more than {_MEMBERS} members. Send it as one.")


def parse_rows(data: bytes, media: str, shape: Shape) -> list[BodyRow]:
    """Rows of a body. Raises `BodyRefusal`: 400 with the line or field of what is no JSON object, 413 for too many."""
    _bound_values(data, shape.max_values)
    rows = _lines(data, shape) if media == NDJSON else _items(data, shape)
    if not rows:
        raise BodyRefusal(400, "empty", "expected at least one row, found none.")
    if len(rows) > shape.max_rows:
        told = f"expected at most {shape.max_rows} rows, found {len(rows)}. Send them in parts."
        raise BodyRefusal(413, "too_many_rows", told)
    return rows


def _bound_values(data: bytes, limit: int) -> None:
    """Refuse what holds too many values, before it is parsed: a byte of `[],[],…` becomes twenty in memory.

    A value stands after a comma or an opening bracket, so that these bound the number of values.
    """
    if openers(data) + data.count(b",") <= limit:  # with those inside texts; mostly that settles it
        return
    bare = without_strings(data)
    found = openers(bare) + bare.count(b",")
    if found > limit:
        raise BodyRefusal(
            413, "too_many_values", f"expected at most {limit} values, found {found}. Send them in parts."
        )


def _lines(data: bytes, shape: Shape) -> list[BodyRow]:
    rows = []
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.strip():
            rows.append(_row(number, _load(line, shape.max_depth, line_number=number), line=number))
    return rows


def _items(data: bytes, shape: Shape) -> list[BodyRow]:
    items = _load(data, shape.max_depth + 1)  # the list itself is a level
    if not isinstance(items, list):
        raise BodyRefusal(400, "not_a_list", f"expected a JSON list of rows, found {_kind(items)}.")
    return [_row(place, item, field=f"[{place - 1}]") for place, item in enumerate(items, 1)]


def _row(number: int, value: Any, *, line: int | None = None, field: str | None = None) -> BodyRow:
    if not isinstance(value, dict):
        raise BodyRefusal(
            400, "not_an_object", f"expected a JSON object, found {_kind(value)}.", line=line, field=field
        )
    return BodyRow(number, orjson.dumps(value, option=orjson.OPT_SORT_KEYS))


def _load(text: bytes, max_depth: int, line_number: int | None = None) -> Any:
    if deeper_than(text, max_depth):
        told = f"expected JSON of at most {max_depth} levels, found more."
        raise BodyRefusal(400, "too_deep", told, line=line_number)
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        line = line_number if line_number is not None else error.lineno
        raise BodyRefusal(400, "broken_json", f"not JSON, column {error.colno}: {error.msg}.", line=line) from error


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _show(text: str) -> str:
    return repr(text[:_SHOWN]) if text else "none"
