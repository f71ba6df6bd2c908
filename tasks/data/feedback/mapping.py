"""A map: a person's word on which column of a table is which, and what its labels mean.

`prompt=instruction` reads column `instruction` as the prompt; `data.question` is a field inside a column. `label.a=0`
says that a label of 0 means response_a; `metadata=mood,age` (or `metadata=*`) keeps columns in the metadata. What a map
names is renamed, and read by the reader that knows the new names; columns that it does not name keep theirs where a
reader needs them, and go into the metadata where none does.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from plumbline.data_contracts.errors import UsageError
from plumbline.tasks.data.feedback.columns import EXTRAS, OPTIONAL, TOOLS, Row, field_names, number_of, value_at
from plumbline.tasks.data.feedback.defects import Defect
from plumbline.tasks.data.feedback.readers import is_index
from plumbline.tasks.params.feedback_rules import MAP_COLUMNS, MAP_METADATA, MAP_NAMES

_MAY_LACK = frozenset({"id", "annotator", "timestamp", "source", "system", "history", "thumb"})
_MEANING = {"label": {"a": "a", "b": "b", "tie": "tie"}, "thumb": {"up": "up", "down": "down", "none": "neutral"}}


def parse_map(settings: Sequence[str]) -> dict[str, str]:
    """A map from `NAME=COLUMN` words. Raises `UsageError` for one that is none, or a name that does not exist."""
    found: dict[str, str] = {}
    for setting in settings:
        name, equals, column = setting.partition("=")
        if not equals or not column:
            raise UsageError(
                f"--map {setting}: expected NAME=COLUMN, as prompt=instruction. Names: {', '.join(MAP_COLUMNS)}."
            )
        if name in found:
            raise UsageError(f"--map {setting}: {name} was mapped to {found[name]} already. Name each thing once.")
        found[name] = column
    check_map(found)
    return found


def check_map(columns: Mapping[str, str]) -> None:
    """Raise `UsageError` for a name that a map cannot have."""
    for name in columns:
        if name not in MAP_NAMES:
            near = difflib.get_close_matches(name, MAP_NAMES, n=1)
            told = f"Did you mean {near[0]}? " if near else ""
            raise UsageError(f"--map {name}: no such name. {told}Choose among {', '.join(MAP_NAMES)}.")


def mapped(row: Row, columns: Mapping[str, str]) -> dict[str, Any]:
    """A row under the names of the contract. Raises `Defect` (`missing_field`) if it lacks a column that is needed."""
    named = {name: column for name, column in columns.items() if name in MAP_COLUMNS}
    found: dict[str, Any] = {}
    for name, column in named.items():
        value = value_at(row, column)
        if value is not None:
            found[name] = _meaning(name, value, columns)
        elif name not in _MAY_LACK:
            raise Defect("missing_field", column, f"the column for {name} (--map {name}={column})", field_names(row))
    used = {column if column in row else column.split(".")[0] for column in named.values()}
    rest = {name: value for name, value in row.items() if name not in used and name not in found and not is_index(name)}
    return found | _with_metadata(rest, columns)


def why_unmapped(row: Row, columns: Mapping[str, str]) -> str:
    """The reason for which a map does not fit a row; empty if it does."""
    try:
        mapped(row, columns)
    except Defect as defect:
        return f"expected {defect.expected}: {defect.field}; found {defect.found}."
    return ""


def _with_metadata(rest: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Columns that no map names: those of the contract as they are, others inside metadata."""
    asked = set(columns.get(MAP_METADATA, "").split(","))
    own = OPTIONAL | EXTRAS | frozenset((*MAP_COLUMNS, *TOOLS, "completion"))
    aside = {name: value for name, value in rest.items() if name not in own or name in asked}
    plain = {name: value for name, value in rest.items() if name not in aside}
    if not aside:
        return plain
    known = plain.get(MAP_METADATA, {})
    return plain | {MAP_METADATA: {**aside, **known} if isinstance(known, dict) else known}


def _meaning(name: str, value: Any, columns: Mapping[str, str]) -> Any:
    """A label in the words of the contract, if the map says what it means."""
    for kind, word in _MEANING.get(name, {}).items():
        for written in columns.get(f"{name}.{kind}", "").split(","):
            if written and _same(written, value):
                return word
    if name == "label" and isinstance(value, str):
        by_column = {columns.get("response_a"): "a", columns.get("response_b"): "b"}
        return by_column.get(value, value)
    return value


def _same(written: str, value: Any) -> bool:
    if isinstance(value, bool):
        return written.strip().lower() == str(value).lower()
    number = number_of(value)
    if number is not None and number_of(written) is not None:
        return number_of(written) == number
    return isinstance(value, str) and written.strip().lower() == value.strip().lower()
