"""Search for erased texts in bytes of any kind: which of many needles occur.

A needle is the bytes of a text as a file may hold it: UTF-8, or escaped as JSON with or without other alphabets. Of a
long text the beginning, the middle and the end are needles of their own, so that a cut excerpt and a text that a
database splits over pages are found too. A text of fewer than 12 bytes is no needle: it would be found everywhere.

Equivalent to `{needle for needle in needles if needle in data}`. Eight bytes at every place are compared at once with
the first eight of all needles.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from typing import IO

import numpy as np
import orjson

from plumbline.tasks.data.feedback.removal import texts_in

LEAST = 12
"""Bytes of the shortest text that is looked for."""

_ANCHOR = 8
_WINDOW = 48
_CHUNK = 1 << 22


def needles_of(texts: Iterable[str]) -> set[bytes]:
    """The needles of texts; none of those that are too short."""
    return {
        window for text in texts if len(text.encode()) >= LEAST for form in _forms(text) for window in _windows(form)
    }


def named(fields: Iterable[str], value: str) -> set[bytes]:
    """The needles of a name or id as the value of one of these JSON fields, of whatever length."""
    written = {orjson.dumps(value), json.dumps(value).encode()}
    return {f'"{field}":{space}'.encode() + text for field in fields for space in ("", " ") for text in written}


class Searcher:
    """The needles, arranged to be looked for all at once."""

    def __init__(self, needles: Collection[bytes]) -> None:
        self._by_anchor: defaultdict[int, list[bytes]] = defaultdict(list)
        for needle in needles:
            self._by_anchor[int.from_bytes(needle[:_ANCHOR], "little")].append(needle)
        self._anchors = np.array(sorted(self._by_anchor), dtype="<u8")  # (N,)
        self._longest = max(map(len, needles), default=0)

    def found_in(self, data: bytes) -> set[bytes]:
        """The needles that occur in `data`."""
        found: set[bytes] = set()
        if not len(self._anchors):
            return found
        for shift in range(_ANCHOR):
            count = (len(data) - shift) // _ANCHOR
            if count > 0:
                words = np.frombuffer(data, "<u8", count, shift)  # (count,)
                near = np.searchsorted(self._anchors, words).clip(max=len(self._anchors) - 1)
                for place in np.flatnonzero(self._anchors[near] == words).tolist():
                    start = place * _ANCHOR + shift
                    found.update(n for n in self._by_anchor[int(words[place])] if data.startswith(n, start))
        return found

    def occurs_in(self, stream: IO[bytes]) -> bool:
        """True if any needle occurs in what a stream holds."""
        rest = b""
        while chunk := stream.read(_CHUNK):
            if self.found_in(rest + chunk):
                return True
            rest = (rest + chunk)[-self._longest :] if self._longest else b""
        return False

    def shared_with(self, rows: Iterable[bytes]) -> set[bytes]:
        """The needles that occur in rows of JSON, however these are escaped."""
        found: set[bytes] = set()
        for row in rows:
            found |= self.found_in(b"\n".join(_spellings(row)))
        return found


def _forms(text: str) -> set[bytes]:
    return {text.encode(), orjson.dumps(text)[1:-1], json.dumps(text).encode()[1:-1]}


def _windows(form: bytes) -> Iterator[bytes]:
    if len(form) <= 2 * _WINDOW:
        yield form
        return
    middle = (len(form) - _WINDOW) // 2
    yield from (form[start : start + _WINDOW] for start in (0, middle, len(form) - _WINDOW))


def _spellings(row: bytes) -> Iterator[bytes]:
    """A row as it is, as canonical JSON, in ASCII, and its texts alone."""
    yield row
    try:
        value = orjson.loads(row)
    except orjson.JSONDecodeError:
        return
    yield orjson.dumps(value)
    yield json.dumps(value).encode()
    yield from (text.encode() for text in texts_in(value))
