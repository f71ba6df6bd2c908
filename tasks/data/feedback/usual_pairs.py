"""Rows in the most usual shapes, read without an object for each: a prompt, two texts, and a label where there is one.

`UsualReading.read` gives the fields of a row's record, or None for any row that it cannot decide; `rows.read_row`
decides those. Naive equivalent: `rows.read_row` for every row; a property test compares them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from plumbline.data_contracts.contract_suite import digest_of
from plumbline.data_contracts.nesting import MAX_LEVELS, openers
from plumbline.data_contracts.records import PreferencePair, content_id_of
from plumbline.tasks.data.feedback.columns import EXTRAS, OPTIONAL, ROLES
from plumbline.tasks.data.feedback.defects import Defect
from plumbline.tasks.data.feedback.formats import READER, recognise
from plumbline.tasks.data.feedback.readers import DESCRIPTIVE, is_index
from plumbline.tasks.data.feedback.rows import ReadRow, about, identifier, metadata_of, with_margin
from plumbline.tasks.data.feedback.verdicts import Numbers, Side, Word, read_side

_FORMS = frozenset({"trl_standard", "trl_conversational", "response_label"})
_PLAIN = OPTIONAL - {"meta", "metadata"}  # columns that leave the metadata empty
_HH = "Human:"  # a prompt with this word may be a conversation in one text
_MARK = b"not a number"  # rows.py marks NaN by these words


@dataclass(frozen=True, slots=True)
class UsualRow:
    """One row as read: `fields` are those of its `PreferencePair`, as in JSON; `digest` is that of its content."""

    line: int
    raw: bytes
    format: str
    label: Side | None
    fields: dict[str, Any]
    content_id: str

    @property
    def digest(self) -> bytes:
        """The digest by which an id's content is known."""
        return digest_of(self.content_id)

    def as_read(self) -> ReadRow:
        """The row as `rows.read_row` gives it."""
        record = PreferencePair.model_validate(self.fields)
        return ReadRow(self.line, self.raw.decode(), self.format, record, self.label)


@dataclass(frozen=True, slots=True)
class _Shape:
    """What rows with the same columns have in common: their format, sides, label and the columns that they keep."""

    form: str
    first: str
    second: str
    label: str | None
    kept: tuple[str, ...]
    plain: bool


@dataclass(slots=True)
class UsualReading:
    """The reading of the usual rows of one file; `numbers` is what numbers mean in its labels."""

    source: str
    numbers: Numbers
    file: str
    _shapes: dict[tuple[tuple[str, ...], bool], _Shape | None] = field(default_factory=dict)
    _sides: dict[str, Side | None] = field(default_factory=dict)

    def read(self, text: bytes, line: int, senders: tuple[str, ...]) -> UsualRow | None:
        """The row, or None where it is not one of the usual."""
        row = _object(text)
        if row is None or "prompt" not in row:
            return None
        turns = _turns(row["prompt"])
        shape = self._shape(row) if turns is not None else None
        if turns is None or shape is None:
            return None
        chosen, rejected = row[shape.first], row[shape.second]
        label = self._side(row[shape.label]) if shape.label is not None else None
        texts = type(chosen) is str and type(rejected) is str
        if not texts or label == "tie" or (shape.label is not None and label is None):
            return None
        if label == "b":
            chosen, rejected = rejected, chosen
        try:
            return self._row(row, shape, (turns, chosen, rejected), label, (text, line, senders))
        except Defect:
            return None

    def _row(
        self,
        row: dict[str, Any],
        shape: _Shape,
        content: tuple[list[dict[str, str]], str, str],
        label: Side | None,
        place: tuple[bytes, int, tuple[str, ...]],
    ) -> UsualRow:
        turns, chosen, rejected = content
        text, line, senders = place
        name = content_id_of(turns, chosen, rejected)
        fields = self._about(row, shape) | {
            "chosen": chosen,
            "given_id": None,
            "id": identifier(row, "id") or name,
            "origin": {"file": self.file, "line": line} | ({"senders": list(senders)} if senders else {}),
            "prompt": turns,
            "rejected": rejected,
        }
        return UsualRow(line, text, shape.form, label, fields, name)

    def _about(self, row: dict[str, Any], shape: _Shape) -> dict[str, Any]:
        if shape.plain:
            return about(row, self.source, {})
        kept = {name: row[name] for name in shape.kept}
        return about(row, self.source, with_margin({**metadata_of(row), **kept}))

    def _side(self, label: object) -> Side | None:
        if type(label) is not str:
            return None
        if label not in self._sides:
            self._sides[label] = read_side(label, self.numbers)
        return self._sides[label]

    def _shape(self, row: dict[str, Any]) -> _Shape | None:
        key = tuple(row), type(row["prompt"]) is list
        if key not in self._shapes:
            self._shapes[key] = _shape_of(row)
        return self._shapes[key]


def _object(text: bytes) -> dict[str, Any] | None:
    """The JSON object of a row without its null fields; None for one that must be looked at closely."""
    if openers(text) > MAX_LEVELS or _MARK in text:
        return None
    try:
        row = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    if type(row) is not dict:
        return None
    return {name: value for name, value in row.items() if value is not None} if None in row.values() else row


def _turns(prompt: object) -> list[dict[str, str]] | None:
    """A prompt's turns if it is a text or a list of plain messages, else None."""
    if type(prompt) is str:
        return None if _HH in prompt else [{"content": prompt, "role": "user"}]
    return prompt if type(prompt) is list and prompt and all(map(_is_plain_message, prompt)) else None


def _is_plain_message(turn: object) -> bool:
    if type(turn) is not dict or len(turn) != 2:
        return False
    role = turn.get("role")
    return type(role) is str and role in ROLES and type(turn.get("content")) is str


def _shape_of(row: Mapping[str, Any]) -> _Shape | None:
    """The shape of a row, or None where it is not one of the usual."""
    try:
        reader = READER[recognise(row)]
    except Defect:
        return None
    label = reader.verdict.column if isinstance(reader.verdict, Word) else None
    if reader.name not in _FORMS or not reader.fits(row) or reader.sides is None or (reader.system or "") in row:
        return None
    kept = tuple(name for name in row if name in DESCRIPTIVE or name in reader.keeps)
    own = [name for name in row if name not in kept and not is_index(name)]
    if any(name not in reader.knows | OPTIONAL | EXTRAS for name in own):
        return None
    if any(type(row[side]) is not str for side in reader.sides):
        return None
    plain = not kept and all(name in reader.knows | _PLAIN for name in own)
    return _Shape(reader.name, *reader.sides, label, kept, plain)
