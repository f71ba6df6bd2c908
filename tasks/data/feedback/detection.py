"""Detection: what a file is, from the head of it, with how many rows say so; and what numbers in it mean.

The rows of a file are read one by one, each by the reader that it fits. The head decides what rows cannot: which
source the file belongs to where nobody names it, and which sides 1 and 2 are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from plumbline.data_contracts.errors import UsageError
from plumbline.tasks.data.feedback.columns import field_names, value_at
from plumbline.tasks.data.feedback.defects import Defect
from plumbline.tasks.data.feedback.formats import PAIRS, READER, SINGLES, nearest, recognise
from plumbline.tasks.data.feedback.readers import Kind
from plumbline.tasks.data.feedback.verdicts import Numbers, Word, numbers_of

HEAD = 300
"""Rows of a file that are looked at."""

_ALL: frozenset[Kind] = PAIRS | SINGLES
_SURE = 0.95  # share of rows from which on it is said without a doubt
_LEAST = 0.5  # share below which a file is not read without its source
_SEVERAL = 0.5  # share of rated rows whose prompt has other responses, from which on they are pairs


@dataclass(frozen=True, slots=True)
class Detection:
    """The kind of a file: the source, the most frequent format, the rows that have it, and the rows looked at."""

    source: str
    form: str
    rows: int
    looked_at: int

    @property
    def share(self) -> float:
        """Share of the rows that have the format."""
        return self.rows / self.looked_at

    @property
    def text(self) -> str:
        """The finding as a sentence."""
        sure = "" if self.share >= _SURE else "probably "
        title = READER[self.form].title
        return (
            f"{sure}{title} (format {self.form}, {self.rows} of the first {self.looked_at} rows), read as {self.source}"
        )


def detect(head: Sequence[Mapping[str, Any]], shown: str, looked_at: int) -> Detection:
    """Name what the first rows of a file are: those of `looked_at` that could be read.

    Raises `UsageError` if fewer than half have one format: the message says what they nearly are, and the cure.
    """
    counts: Counter[str] = Counter()
    for row in head:
        with suppress(Defect):
            form = recognise(row, _ALL)
            counts[form] += READER[form].fits(row)
    form, fitting = max(counts.items(), key=lambda item: item[1], default=("", 0))
    # a row without a thumb is of the format too
    rows = sum(READER[form].has(row) == len(READER[form].needs) for row in head) if fitting else 0
    if rows < _LEAST * max(looked_at, 1):
        raise UsageError(_unknown(head, shown))
    return Detection(_source(form, head), form, rows, looked_at)


def meaning_of_numbers(head: Iterable[Mapping[str, Any]]) -> Numbers:
    """The meaning of numbers in the labels of a file: 1 and 2 are a and b if its head has both, and no other."""
    labels: list[object] = []
    for row in head:
        try:
            reader = READER[recognise(row)]
            flat = reader.flatten(row) if reader.flatten and reader.fits(row) else row
        except Defect:
            continue
        if isinstance(reader.verdict, Word) and not reader.verdict.numbers and reader.verdict.column in flat:
            labels.append(flat[reader.verdict.column])
    return numbers_of(labels)


def _source(form: str, head: Sequence[Mapping[str, Any]]) -> str:
    reader = READER[form]
    if reader.kind == "opinion":
        return "unpaired_responses"
    if reader.kind != "rating":
        return "human_pairs"
    prompts = Counter(str(row.get(reader.prompt or "")) for row in head)
    several = sum(count for count in prompts.values() if count > 1)
    return "human_pairs" if several >= _SEVERAL * len(head) else "unpaired_responses"


def _unknown(head: Sequence[Mapping[str, Any]], shown: str) -> str:
    if not head:
        return f"{shown}: expected rows of feedback, found no JSON object at its beginning. Check its export. {_CURE}."
    found = f"{shown}: expected feedback in a known form, found {field_names(head[0])}"
    near = nearest(head[0], _ALL)
    if near is None:
        return f"{found}. {_CURE}."
    missing = [name for name in near.needs if value_at(head[0], name) is None]
    told = f"it lacks {', '.join(missing)}" if missing else "most rows hold something else"
    return f"{found}: nearly {near.title} (format {near.name}), but {told}. {_CURE}."


_CURE = (
    "Say which column is which, as --map prompt=COLUMN --map chosen=COLUMN --map rejected=COLUMN, or name the source "
    "before the file to take it in as it is"
)
