"""Ratings of single responses as pairs: rows with the same prompt are a list, whose responses are compared.

Rows may lie anywhere in a file: they wait in a temporary database on disk, by the digest of their prompt. Rows with the
same response are one response with their mean rating. Of more than `lists.MOST` responses to a prompt, each next
`MOST` are a list of their own.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby

import orjson

from plumbline.data_contracts.records import Message
from plumbline.tasks.data.feedback.lists import MOST, ListedResponse

_ORDERED = """
    SELECT rated.key, rated.line, rated.response, rated.worth, rated.raw, rated.senders FROM rated
    JOIN (SELECT key, MIN(line) AS first FROM rated GROUP BY key) USING (key)
    ORDER BY first, line
"""


@dataclass(frozen=True, slots=True)
class RatedRow:
    """One row of a group: its line, the response, its rating, the row itself, and who sent it."""

    line: int
    response: str
    worth: float
    raw: bytes
    senders: tuple[str, ...] = ()


class Groups:
    """Rated rows by prompt, on disk while they are collected."""

    def __init__(self) -> None:
        self._database: sqlite3.Connection | None = None

    def add(self, form: str, prompt: Sequence[Message], row: RatedRow) -> None:
        """Keep a row until all were read; ratings of two formats are not compared."""
        if self._database is None:
            self._database = sqlite3.connect("")  # a temporary file, gone when it is closed
            self._database.execute(
                "CREATE TABLE rated (key BLOB, line INTEGER, response TEXT, worth REAL, raw BLOB, senders TEXT)"
            )
        turns = [[turn.role, turn.content] for turn in prompt]
        key = hashlib.sha256(orjson.dumps([form, turns])).digest()[:16]
        values = (key, row.line, row.response, row.worth, row.raw, "\n".join(row.senders))
        self._database.execute("INSERT INTO rated VALUES (?, ?, ?, ?, ?, ?)", values)

    def lists(self) -> Iterator[list[RatedRow]]:
        """The rows of each prompt, in the order of its first row; at most so many that `MOST` responses differ."""
        if self._database is None:
            return
        with closing(self._database) as database:
            found = database.execute(_ORDERED)
            for _, rows in groupby(found, key=lambda row: row[0]):
                yield from _at_most(map(_row, rows))
        self._database = None


def _row(values: tuple[bytes, int, str, float, bytes, str]) -> RatedRow:
    _, line, response, worth, raw, senders = values
    return RatedRow(line, response, worth, raw, tuple(senders.split("\n")) if senders else ())


def places_of(rows: Sequence[RatedRow]) -> list[ListedResponse]:
    """The different responses of a group with their mean ratings; a place's number is that of its first row."""
    ratings: dict[str, list[float]] = {}
    first: dict[str, int] = {}
    for number, row in enumerate(rows, 1):
        ratings.setdefault(row.response, []).append(row.worth)
        first.setdefault(row.response, number)
    return [ListedResponse(first[text], text, sum(each) / len(each)) for text, each in ratings.items()]


def _at_most(rows: Iterator[RatedRow]) -> Iterator[list[RatedRow]]:
    piece: list[RatedRow] = []
    different: set[str] = set()
    for row in rows:
        if len(different | {row.response}) > MOST or len(piece) >= MOST * MOST:
            yield piece
            piece, different = [], set()
        piece.append(row)
        different.add(row.response)
    if piece:
        yield piece
