"""Pairs on their way through curation: in memory, or as the lines of a file, of which one is held at a time."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import orjson

from plumbline.data_contracts.records import CuratedPair, PreferencePair

Turns = Sequence[tuple[str, str]]
"""Role and content of each turn of a prompt."""

Texts = tuple[Turns, str, str]
"""Prompt, chosen and rejected."""

_BEHIND = b',"given_id":'  # the key that follows those of curation in a line; quotes inside texts are escaped


class PairSource(Protocol):
    """Pairs by their place, the index in the input."""

    def __len__(self) -> int: ...

    def texts(self) -> Iterator[Texts]:
        """The texts of every pair, in order."""

    def record(self, place: int) -> PreferencePair:
        """One pair."""

    def curated_line(self, place: int, cluster: str) -> bytes:
        """One pair as a line of the curated set, if curation changed nothing in it."""


class PairList:
    """Pairs in memory."""

    def __init__(self, pairs: Sequence[PreferencePair]) -> None:
        self._pairs = pairs

    def __len__(self) -> int:
        return len(self._pairs)

    def texts(self) -> Iterator[Texts]:
        """As `PairSource`."""
        return map(texts_of, self._pairs)

    def record(self, place: int) -> PreferencePair:
        """As `PairSource`."""
        return self._pairs[place]

    def curated_line(self, place: int, cluster: str) -> bytes:
        """As `PairSource`."""
        return line_of(curated_pair(self._pairs[place], cluster, ()))


class PairLines:
    """Pairs in a file that `validate` wrote, one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._ends = array("q", [0])
        for line in self._file:
            self._ends.append(self._ends[-1] + len(line))

    def __enter__(self) -> PairLines:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._ends) - 1

    def texts(self) -> Iterator[Texts]:
        """As `PairSource`."""
        self._file.seek(0)
        for line in self._file:
            row = orjson.loads(line)
            turns = [(turn["role"], turn["content"]) for turn in row["prompt"]]
            yield turns, row["chosen"], row["rejected"]

    def record(self, place: int) -> PreferencePair:
        """As `PairSource`."""
        return PreferencePair.model_validate_json(self._line(place))

    def curated_line(self, place: int, cluster: str) -> bytes:
        """As `PairSource`: the line itself with the two fields that a curated pair has more."""
        line = self._line(place)
        start = line.find(_BEHIND)
        if start < 0:
            return line_of(curated_pair(self.record(place), cluster, ()))
        return b"".join((line[:start], b',"cleaned":[],"cluster":"', cluster.encode(), b'"', line[start:]))

    def _line(self, place: int) -> bytes:
        start, end = self._ends[place], self._ends[place + 1]
        return os.pread(self._file.fileno(), end - start, start)


def texts_of(pair: PreferencePair) -> Texts:
    """The texts of a pair."""
    return [(turn.role, turn.content) for turn in pair.prompt], pair.chosen, pair.rejected


def curated_pair(pair: PreferencePair, cluster: str, cleaned: tuple[str, ...]) -> CuratedPair:
    """A pair with what curation found."""
    fields = {name: getattr(pair, name) for name in PreferencePair.model_fields}
    return CuratedPair(**fields, cluster=cluster, cleaned=cleaned)


def line_of(pair: CuratedPair) -> bytes:
    """A curated pair as a line of canonical JSON."""
    return orjson.dumps(pair.model_dump(mode="json"), option=orjson.OPT_SORT_KEYS) + b"\n"
