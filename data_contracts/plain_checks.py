"""The expectations of our suites as plain Python, for a few rows: Great Expectations takes 80 ms a call, however few.

The suite's JSON decides here as there: which columns, which patterns, which values. Only the types in `PLAIN` are
known; any other is a `StageError`, never passed over. A property test holds both ways to the same verdicts, and a run
checks every row with Great Expectations, whatever was found here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from plumbline.data_contracts.errors import StageError

Columns = Mapping[str, Sequence[str | None]]
"""The columns that a contract checks, by name."""

Blamed = tuple[Mapping[str, Any], Sequence[int]]
"""An expectation as in the suite, and the rows that break it."""


def blame_plainly(suite: Mapping[str, Any], columns: Columns) -> Iterator[Blamed]:
    """Each expectation of a suite and the rows that break it.

    Raises `StageError` for an expectation that has no equivalent here or cannot be run: nothing passes unchecked.
    """
    for config in suite["expectations"]:
        try:
            rows = PLAIN[config["type"]](columns, **config["kwargs"])
        except (KeyError, TypeError, re.error) as error:
            raise StageError(
                f"suite {suite['name']}: expectation {config['type']} {config['kwargs']} could not be run plainly: "
                f"{type(error).__name__} {error}. Nothing was accepted. See PLAIN in data_contracts/plain_checks.py."
            ) from error
        yield config, rows


def is_iso8601(value: object) -> bool:
    """True if a value is a string that `datetime.fromisoformat` reads with `T` or a space between date and time."""
    if not isinstance(value, str):
        return False
    try:
        datetime.fromisoformat(value)
    except ValueError:
        return False
    return not set(value) - set("0123456789-:+.,WTZ ")  # fromisoformat itself accepts any separator


def say_the_same(one: str, other: str) -> bool:
    """True if two texts differ in white space alone: their first words decide most."""
    return one.split(None, 3)[:3] == other.split(None, 3)[:3] and one.split() == other.split()


def _not_matching(columns: Columns, *, column: str, regex: str) -> list[int]:
    pattern = re.compile(regex)
    return [row for row, text in enumerate(columns[column]) if text is not None and not pattern.search(text)]


def _not_in_set(columns: Columns, *, column: str, value_set: Sequence[str]) -> list[int]:
    return [row for row, text in enumerate(columns[column]) if text is not None and text not in value_set]


def _not_iso8601(columns: Columns, *, column: str) -> list[int]:
    return [row for row, text in enumerate(columns[column]) if text is not None and not is_iso8601(text)]


def _same_texts(columns: Columns, *, column_A: str, column_B: str) -> list[int]:
    both = zip(columns[column_A], columns[column_B], strict=True)
    # As in the suite's own expectation, a null is no text: it raises.
    return [row for row, (one, other) in enumerate(both) if say_the_same(_text(one), _text(other))]


def _text(value: str | None) -> str:
    if value is None:
        raise TypeError("a null among texts to compare")
    return value


PLAIN: Mapping[str, Callable[..., list[int]]] = {
    "expect_column_values_to_match_regex": _not_matching,
    "expect_column_values_to_be_in_set": _not_in_set,
    "expect_column_values_to_be_iso8601": _not_iso8601,
    "expect_column_pair_texts_to_differ": _same_texts,
}
"""Type of expectation -> the rows that break it, given the columns and the expectation's arguments."""
