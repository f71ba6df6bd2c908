"""Rows out of JSON that is not one object per line: an array, objects over several lines, or lists inside an object.

The text is split at its brackets and commas outside of strings, as it streams by; rows keep their own text. A row
longer than the limit is cut, so that memory is bounded whatever a document holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

Layout = Literal["array", "objects", "wrapped"]
"""`array`: one array of rows. `objects`: one object after the other. `wrapped`: lists of rows in the fields of one."""

_OUTSIDE = re.compile(rb'["\[\]{},]')
_INSIDE = re.compile(rb'["\\]')
_SPACE = b" \t\r\n\xef\xbb\xbf"


def split_document(chunks: Iterator[bytes], layout: Layout, most: int) -> Iterator[bytes]:
    """The text of each row, of one over `most` bytes the first `most + 1`. Raises `EOFError` if a list does not end."""
    splitter = _Splitter(layout, most)
    for chunk in chunks:
        yield from splitter.feed(chunk)
    yield from splitter.end()


class _Splitter:
    """The place in the text: how deep, in a string or not, and the row that has begun.

    `base` is the depth at which rows lie; None if the text is no part of any.
    """

    def __init__(self, layout: Layout, most: int) -> None:
        self.layout, self.most = layout, most
        self.depth = 0
        self.base: int | None = None if layout == "wrapped" else 0
        self.in_string = self.escaped = self.has_objects = False
        self.parts: list[bytes] = []
        self.held = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        place = begin = 0
        if self.escaped:
            self.escaped, place = False, 1
        while (found := (_INSIDE if self.in_string else _OUTSIDE).search(data, place)) is not None:
            at, place = found.start(), found.end()
            byte = data[at : at + 1]
            if byte == b'"':
                self.in_string = not self.in_string
            elif byte == b"\\":
                place += 1
                self.escaped = place > len(data)
            elif byte == b",":
                if self.base is not None and self.depth == self.base:
                    yield from self._flush(data[begin:at])
                    begin = place
            elif byte in (b"[", b"{"):
                began, yielded = self._open(byte, data[begin:at])
                yield from yielded
                begin = place if began else begin
            else:
                ended, yielded = self._close(data, begin, at, place)
                yield from yielded
                begin = place if ended else begin
        if self.base is not None:
            self._hold(data[begin:])

    def end(self) -> Iterator[bytes]:
        if self.base == 0 or (self.base is None and self.depth == 0):
            yield from self._flush(b"")
        else:
            raise EOFError("its last list does not end")

    def _open(self, byte: bytes, before: bytes) -> tuple[bool, Iterator[bytes]]:
        """Go one deeper; true if rows begin here."""
        self.depth += 1
        if self.layout == "array" and self.depth == 1 and byte == b"[":
            rubbish = list(self._flush(before))
            self.base, self.has_objects = 1, True
            return True, iter(rubbish)
        if self.layout == "wrapped" and self.depth == 2 and byte == b"[":
            self.base, self.has_objects = 2, False
            return True, iter(())
        return False, iter(())

    def _close(self, data: bytes, begin: int, at: int, after: int) -> tuple[bool, Iterator[bytes]]:
        """Go one up; true if a row, or a list of them, ends here."""
        self.depth = max(self.depth - 1, 0)
        if self.base == 0 and self.depth == 0:
            return True, self._flush(data[begin:after])
        if self.base and self.depth == self.base - 1:
            rows = list(self._flush(data[begin:at]))
            self.base = 0 if self.layout == "array" else None
            return True, iter(rows)
        return False, iter(())

    def _hold(self, piece: bytes) -> None:
        if piece and self.held <= self.most:
            self.parts.append(piece)
            self.held += len(piece)

    def _flush(self, piece: bytes) -> Iterator[bytes]:
        """The row that ends with `piece`, if there is one. Of a list of an object only those after its first object."""
        self._hold(piece)
        text = b"".join(self.parts).strip(_SPACE)[: self.most + 1]
        self.parts, self.held = [], 0
        self.has_objects = self.has_objects or text.startswith(b"{")
        if text and (self.has_objects or self.layout != "wrapped"):
            yield text
