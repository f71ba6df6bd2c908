"""The form of a text (JSON lines, a JSON document, CSV, TSV), and files that are no feedback, named with the cure.

Binary files are recognised by their first bytes, texts by their first lines. A text needs sound evidence: a file
of JSON lines whose first row is broken stays one, and that row is set aside.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from plumbline.data_contracts.errors import UnreadableFile
from plumbline.data_contracts.nesting import without_strings
from plumbline.tasks.data.feedback.json_documents import Layout

EXPECTED = "JSON lines, JSON, CSV, TSV, Parquet, Arrow or Feather, plain or compressed (gzip, zstd, bzip2, xz, zip)"

Found = tuple[str, str]
"""The kind of a file, and the cure."""


@dataclass(frozen=True, slots=True)
class Form:
    """A form that is read: its name, for CSV and TSV the delimiter, for a JSON document where its rows are."""

    name: str
    delimiter: str | None = None
    layout: Layout | None = None


_ROW_FIELDS = frozenset(
    {
        *("prompt", "chosen", "rejected", "response_a", "response_b", "label", "completion", "response"),
        *("messages", "thumb", "answers", "responses", "completions", "conversations", "conversation_a"),
        *("conversation_b", "annotations", "candidates", "generations", "outputs", "summaries", "votes"),
        *("input", "preferred_output", "non_preferred_output", "instruction", "question", "response_1"),
        *("response_2", "response_0", "history", "context"),
    }
)
_OTHER_FIELDS = frozenset({"id", "source", "annotator", "timestamp", "meta", "metadata"})
_CELL = re.compile(r"[\w .\-/()]{1,64}")
_DELIMITERS = {",": "csv", "\t": "tsv", ";": "csv", "|": "csv"}
_NAMES = ("head", "body", "html", "!doctype html")
_UNPACK = "Unpack it, and give the files inside one by one."
_PICKLE = "Load it in Python, only if you trust its origin, and write one JSON object per line."
_ARROW = "Write its table as Parquet: `pyarrow.parquet.write_table`."

_BINARY: Sequence[tuple[int, bytes, Found]] = (
    (0, b"\x04\x22\x4d\x18", ("an lz4 file", "Undo it: `unlz4 {name}`.")),
    (0, b"7z\xbc\xaf\x27\x1c", ("a 7z archive", _UNPACK)),
    (0, b"Rar!\x1a\x07", ("a rar archive", _UNPACK)),
    (257, b"ustar", ("a tar archive", "Unpack it (`tar -xf {name}`), and give the files inside one by one.")),
    (0, b"\xd0\xcf\x11\xe0", ("an old Excel or Office file", "Save the sheet as CSV, and convert that to JSON lines.")),
    (0, b"FEA1", ("a Feather file of version 1", _ARROW)),
    (0, b"ORC", ("an ORC file", _ARROW)),
    (0, b"Obj\x01", ("an Avro file", "Write its records as JSON lines.")),
    (0, b"SQLite format 3\x00", ("an SQLite database", "Export the table, one JSON object per line.")),
    (0, b"\x89HDF", ("an HDF5 file", "Write its rows as JSON lines.")),
    (0, b"\x93NUMPY", ("a NumPy array", "Write its rows as JSON lines.")),
    (0, b"%PDF-", ("a PDF document", "Give the export that it was made from.")),
    (0, b"GGUF", ("a model's weights (GGUF)", "Give the file of feedback.")),
)


def refuse_foreign_bytes(head: bytes, shown: Path | str, inside: str | None = None) -> None:
    """Raise `UnreadableFile` if the first 4 KiB of a file are binary; `inside` names what was undone before."""
    found = _binary(head)
    if found is not None:
        raise _refusal(shown, found, inside)


def text_form(head: bytes, shown: Path | str, *, whole: bool) -> Form:
    """The form of a text. Raises `UnreadableFile` for one that is no feedback, or is of a form that is not read.

    `head` is its beginning as UTF-8, without a byte order mark; `whole`: all of it.
    """
    text = head.decode("utf-8", errors="replace")
    lines = [line for line in (line.strip() for line in text.split("\n")) if line]
    if not lines:
        return Form("jsonl")
    if not whole and len(lines) > 1:
        lines.pop()  # it may go on
    text = text.lstrip()
    for look in (_pointer, _markup, _python, _columns, _yaml):
        found = look(text, lines)
        if found is not None:
            raise _refusal(shown, found)
    if (layout := _layout(text, lines)) is not None:
        return Form("json", layout=layout)
    if (delimiter := _delimiter(lines)) is not None:
        return Form(_DELIMITERS[delimiter], delimiter=delimiter)
    return Form("jsonl")


def _refusal(shown: Path | str, found: Found, inside: str | None = None) -> UnreadableFile:
    what, cure = found
    where = f" in {inside}" if inside else ""
    told = cure.replace("{name}", Path(shown).name)
    return UnreadableFile(f"{shown}: expected {EXPECTED}, found {what}{where}. {told}")


def _binary(head: bytes) -> Found | None:
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")):
        return _zipped(head)
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a Python pickle (or a torch checkpoint)", _PICKLE
    for place, magic, found in _BINARY:
        if head[place : place + len(magic)] == magic:
            return found
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or re.match(rb"(?:[\s\[{]\x00|\x00[\s\[{])", head):
        return "UTF-16 text", "Convert it: `iconv -f UTF-16 -t UTF-8 {name} > utf8.jsonl`."
    if b"\x00" in head:
        told = "Convert it to one JSON object per line (UTF-16 text: `iconv -f UTF-16 -t UTF-8`)."
        return f"binary data that starts with {head[:8]!r}", told
    return None


def _zipped(head: bytes) -> Found:
    if b"[Content_Types].xml" in head or b"xl/" in head:
        return "an Excel or Office file", "Save the sheet as CSV, and convert that to JSON lines."
    if b".pkl" in head:
        return "a torch checkpoint (a zip archive with a pickle)", _PICKLE
    if b".npy" in head:
        return "a NumPy archive", "Write its rows as JSON lines."
    return "a zip archive", "Unpack it (`unzip {name}`), and give the files inside one by one."


def _pointer(text: str, lines: Sequence[str]) -> Found | None:
    first = lines[0]
    if first.startswith("version https://git-lfs.github.com/spec/"):
        return "a Git LFS pointer in place of the file", "Fetch the file itself: `git lfs pull`."
    if re.match(r"(?:\.\./)*(?:\.git/annex|/annex)/objects/", first):
        return "a git-annex pointer in place of the file", "Fetch the file itself: `git annex get {name}`."
    if re.match(r"(?:outs|deps|md5|meta):", first) and re.search(r"^(?:outs|- md5|  md5):", text, re.MULTILINE):
        return "a .dvc file in place of the data", "Fetch the data (`dvc pull`), and give the data file."
    return None


def _markup(text: str, lines: Sequence[str]) -> Found | None:
    if not text.startswith("<"):
        return None
    if text[1:20].lower().startswith(_NAMES):
        return "an HTML page", "Often this is a login or error page: download the file again, signed in."
    if text.startswith("<?xml") or re.match(r"<[A-Za-z][\w:.-]*[\s/>]", text):
        return "XML or HTML", "Convert it to one JSON object per line."
    return None


def _python(text: str, lines: Sequence[str]) -> Found | None:
    if re.match(r"\(?[dl]p0$", lines[0]) or re.match(r"\(lp\d+$", lines[0]):
        return "a Python pickle", _PICKLE
    if re.match(r"\[?\s*\{\s*'[^']*'\s*:", text) and not _is_object(lines[-1]):
        return "Python dictionaries, not JSON", "Write them with `json.dumps`, one per line."
    return None


def _columns(text: str, lines: Sequence[str]) -> Found | None:
    """One JSON object that holds a column in each field, or rows inside other objects."""
    value = _loaded(lines[0]) if len(lines) == 1 else None
    if not isinstance(value, dict):
        return None
    for name, items in value.items():
        if name not in _ROW_FIELDS and _are_rows([item.get("row") for item in _objects(items)]):
            return f"one JSON object with the rows in {name!r}", f"Convert it: {_jq(f'.[{json.dumps(name)}][].row')}."
    columns = [items for name, items in value.items() if name in _ROW_FIELDS]
    if len(columns) > 1 and all(map(_is_column, columns)):
        return "one JSON object with a column in each field", _by_pandas("read_json({name!r})")
    return None


def _layout(text: str, lines: Sequence[str]) -> Layout | None:
    """Where the rows of a JSON document are; None for what is one object per line."""
    first = lines[0]
    if first[0] == "[":
        value = _loaded(first)
        begins = value is None and re.match(r"\[\s*(?:\{|$)", first)
        return "array" if begins or (value and all(isinstance(item, dict) for item in value)) else None
    if first[0] != "{":
        return None
    value = _loaded(first)
    if isinstance(value, dict):
        return "wrapped" if len(lines) == 1 and _wraps(value) else None
    if (first.endswith(",") and _is_object(first[:-1])) or _is_object_with_more(first):
        return "objects"
    goes_on = _left_open(first) and len(lines) > 1 and not _is_object(lines[1])
    if (goes_on or len(lines) == 1) and _field_of_rows(text):
        return "wrapped"
    return "objects" if goes_on else None


def _wraps(value: Mapping[str, Any]) -> bool:
    """True for an object that has rows in a field, and is none itself."""
    lists = [name for name, items in value.items() if _are_rows(items)]
    return bool(lists) and not _ROW_FIELDS & value.keys()


def _loaded(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None


def _jq(path: str) -> str:
    return f"`jq -c '{path}' {{name}} > rows.jsonl`"


def _field_of_rows(text: str) -> str | None:
    """The field of an object that is cut off in which a list of objects begins, unless the object is a row itself."""
    plain = (
        r'"(?P<name>(?:[^"\\]|\\.)*+)"\s*:\s*(?:"(?:[^"\\]|\\.)*+"|[-+\d.eE]+|true|false|null|\{[^{}\[\]"]*\})\s*,\s*'
    )
    place = re.compile(r"\{\s*").match(text)
    assert place is not None, "the text begins with an object"
    end = place.end()
    while match := re.compile(plain).match(text, end):
        if match["name"] in _ROW_FIELDS or match["name"] in _OTHER_FIELDS - {"source", "metadata", "meta"}:
            return None
        end = match.end()
    found = re.compile(r'"((?:[^"\\]|\\.)*+)"\s*:\s*\[\s*\{').match(text, end)
    name = found[1] if found else None
    return None if name in _ROW_FIELDS or name in _OTHER_FIELDS else name


def _left_open(line: str) -> bool:
    """True if a line ends inside an object or list, and not inside a string."""
    bare = without_strings(line.encode() + b"\n")
    return bare.endswith(b"\n") and sum(map(bare.count, (b"[", b"{"))) > sum(map(bare.count, (b"]", b"}")))


def _is_object(line: str) -> bool:
    try:
        return isinstance(orjson.loads(line), dict)
    except orjson.JSONDecodeError:
        return False


def _is_object_with_more(line: str) -> bool:
    try:
        value, end = json.JSONDecoder().raw_decode(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and line[end:].lstrip(" \t,").startswith("{")


def _objects(items: Any) -> list[Mapping[str, Any]]:
    whole = isinstance(items, list) and all(isinstance(item, dict) for item in items)
    return items if whole else []


def _are_rows(items: Any) -> bool:
    found = _objects(items)
    return bool(found) and all(_ROW_FIELDS & item.keys() for item in found)


def _is_column(items: Any) -> bool:
    if isinstance(items, dict):
        return bool(items) and all(name.isdigit() for name in items)
    return isinstance(items, list) and bool(items) and not any(isinstance(item, dict | list) for item in items)


def _yaml(text: str, lines: Sequence[str]) -> Found | None:
    fields = "|".join(sorted(_ROW_FIELDS))
    if re.match(rf"(?:---\s*)?(?:- )?(?:{fields}):(?:\s|$)", text) and not any(map(_is_object, lines[1:2])):
        return "YAML", "Convert it to one JSON object per line."
    return None


def _delimiter(lines: Sequence[str]) -> str | None:
    """The delimiter of a table with its column names in the first line; None for what is no table."""
    if lines[0][0] in "[{" or any(map(_is_object, lines[1:2])):
        return None
    for delimiter in _DELIMITERS:
        cells = [cell.strip() for cell in _cells(lines[0], delimiter)]
        named = len(cells) > 1 and all(not cell or _CELL.fullmatch(cell) for cell in cells)
        known = (_ROW_FIELDS | _OTHER_FIELDS) & {cell.lower() for cell in cells}
        if named and (known or _like(lines, delimiter, len(cells))):
            return delimiter
    return None


def _like(lines: Sequence[str], delimiter: str, cells: int) -> bool:
    """True if the next line has as many cells."""
    return len(lines) > 1 and len(_cells(lines[1], delimiter)) == cells > 2


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:  # a cell over the limit of the parser: no header, and no row of a table that has one
        return []


def _by_pandas(read: str) -> str:
    read = read.replace("{name!r}", "'{name}'")
    told = f"import pandas; pandas.{read}.to_json('rows.jsonl', orient='records', lines=True)"
    return f'Convert it: `python -c "{told}"`.'
