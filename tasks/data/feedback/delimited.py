"""Rows of CSV and TSV: the first line names the columns, a cell in quotes may hold line ends.

Cells are texts. A cell that is JSON is read where a text cannot be meant: messages anywhere, and lists or objects in
columns such as `metadata` or `votes`. A row with more or fewer cells than the header comes as a list of them, so that
its reader refuses it.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from plumbline.data_contracts.errors import UnreadableFile
from plumbline.data_contracts.nesting import MAX_LEVELS, deeper_than
from plumbline.tasks.data.feedback.columns import EXTRAS, OPTIONAL, TOOLS, is_message
from plumbline.tasks.data.feedback.flattening import LISTS

_NESTED = frozenset({"meta", "metadata", "votes", "history", *TOOLS, *LISTS})
_MAY_LACK = OPTIONAL | EXTRAS | {"thumb", "system", "context", "history"}
_PARSER_LIMIT = 131_072  # csv's own: others in this process may count on it


def delimited_rows(lines: Iterator[bytes], delimiter: str, most: int, shown: Path | str) -> Iterator[tuple[int, bytes]]:
    """Each row as the number of the line that it begins on and its JSON text; over `most` bytes cut to one more.

    Raises `UnreadableFile` if the header names a column twice.
    """
    csv.field_size_limit(max(_PARSER_LIMIT, most))
    table = csv.reader((f"{line.decode('utf-8', 'surrogateescape')}\n" for line in lines), delimiter=delimiter)
    header = _header(next(table, []), shown)
    while True:
        number = table.line_num + 1
        try:
            cells = next(table)
        except StopIteration:
            return
        except csv.Error:  # a cell over the limit
            yield number, b"a cell that does not end".ljust(most + 1)
            continue
        if any(cell.strip() for cell in cells):
            yield number, _row(header, cells)[: most + 1]


def _header(cells: Sequence[str], shown: Path | str) -> list[str]:
    names = [cell.strip().lstrip("\ufeff") for cell in cells]
    twice = {name for name in names if name and names.count(name) > 1}
    if twice:
        raise UnreadableFile(
            f"{shown}: expected each column once in the first line, found {', '.join(sorted(twice))} twice. Rename it."
        )
    return names


def _row(header: Sequence[str], cells: Sequence[str]) -> bytes:
    if len(cells) != len(header):
        return _dump(list(cells))
    return _dump({name: _value(name, cell) for name, cell in zip(header, cells, strict=True) if name})


def _value(name: str, cell: str) -> Any:
    """The value of a cell: an empty one of an optional column is none."""
    if not cell and name in _MAY_LACK:
        return None
    if cell[:1] not in ("[", "{") or deeper_than(cell.encode("utf-8", "surrogateescape"), MAX_LEVELS):
        return cell
    try:
        value = orjson.loads(cell)
    except (orjson.JSONDecodeError, ValueError):
        return cell
    messages = isinstance(value, list) and bool(value) and all(map(is_message, value))
    return value if messages or name in _NESTED else cell


def _dump(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:  # bytes that are not UTF-8: they come out as they were, and the row is refused
        return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogateescape")
