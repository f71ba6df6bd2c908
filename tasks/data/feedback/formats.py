"""Recognition: which reader of the table a row is for, from the columns it has and what is in them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from plumbline.tasks.data.feedback.columns import Row, field_names
from plumbline.tasks.data.feedback.defects import Defect
from plumbline.tasks.data.feedback.pair_contents import pair_content
from plumbline.tasks.data.feedback.reader_table import READERS
from plumbline.tasks.data.feedback.readers import Kind, Reader, RowContent
from plumbline.tasks.data.feedback.verdicts import Numbers

PAIRS: frozenset[Kind] = frozenset({"pair", "list", "rating", "opinion"})
"""Kinds of rows that give pairs: judged responses do where a prompt has several."""

SINGLES: frozenset[Kind] = frozenset({"opinion", "rating"})
"""Kinds of rows that give single responses."""

READER: dict[str, Reader] = {reader.name: reader for reader in READERS}
"""Readers by name."""

_NAMED: frozenset[Kind] = frozenset({"pair", "list", "rating"})  # a row without a thumb is not nearly a thumb
_NEAR = 0.5  # share of the needed columns from which on a row is taken for one of a format
_SEEN = 4096  # sets of columns remembered


def recognise(row: Row, kinds: frozenset[Kind] = PAIRS) -> str:
    """The format of a row: the first that it fits, else the one of which it has most columns, and half at least.

    Raises `Defect` (`missing_field`) when it has too few of any.
    """
    for reader in _possible(frozenset(row), kinds):
        if reader.fits(row):
            return reader.name
    near = nearest(row, kinds)
    if near is None:
        first, expected = ("chosen", _EXPECTED_PAIRS) if "pair" in kinds else ("completion", _EXPECTED_SINGLES)
        raise Defect("missing_field", first, f"{expected}. {_other_kind(row, kinds)}", field_names(row))
    return near.name


def nearest(row: Row, kinds: frozenset[Kind]) -> Reader | None:
    """The reader of which a row has the largest share of columns, if it is half or more, and not the prompt alone.

    Of several the plainest: without a condition that the row breaks, and with columns that other formats do not have.
    """
    found = [
        (_nearness(reader, row), reader) for reader in _of(kinds & _NAMED if "pair" in kinds else kinds) if reader.needs
    ]
    (share, *_), reader = max(found, key=lambda each: each[0])
    alone = reader.has(row) == 1 and reader.prompt is not None and reader.prompt.split(".")[0] in row
    return reader if share >= _NEAR and not alone else None


def read_content(row: Row, form: str, numbers: Numbers | None = None) -> RowContent:
    """Read a row with two responses in the format it was recognised as; raises `Defect` with the first thing wrong."""
    return pair_content(READER[form], row, numbers or {})


def _nearness(reader: Reader, row: Row) -> tuple[float, bool, bool]:
    try:
        holds = reader.when is None or reader.when(row)
    except KeyError:  # it looks at a column that is missing
        holds = False
    return reader.has(row) / len(reader.needs), holds, not reader.keeps_all


_EXPECTED_PAIRS = "chosen and rejected, or response_a, response_b and label"
_EXPECTED_SINGLES = "completion and label, response and thumb, or messages and thumb"


@lru_cache(maxsize=_SEEN)
def _possible(columns: frozenset[str], kinds: frozenset[Kind]) -> tuple[Reader, ...]:
    """The readers whose needed columns are all there, as far as top-level names tell."""
    return tuple(r for r in _of(kinds) if all(name in columns or name.split(".")[0] in columns for name in r.needs))


@lru_cache
def _of(kinds: frozenset[Kind]) -> Sequence[Reader]:
    return tuple(reader for reader in READERS if reader.kind in kinds)


def _other_kind(row: Row, kinds: frozenset[Kind]) -> str:
    """The cure for a row that no reader of these kinds reads: the other source, or a map."""
    other = SINGLES if "pair" in kinds else frozenset[Kind]({"pair", "list"})
    found = next((reader for reader in _possible(frozenset(row), other) if reader.fits(row)), None)
    if found is not None:
        source = "unpaired_responses" if "pair" in kinds else "human_pairs"
        return f"These are {found.title}: name the source {source}"
    return "Say which column is which: --map prompt=COLUMN --map chosen=COLUMN --map rejected=COLUMN"
