"""From tokens to the text that may be shown so far.

Three things hold text back: a character whose bytes are not all there, white space that may turn out to be the end
(answers are trimmed, as `tasks.models.sampling` trims them), and what may be the beginning of a stop string.
Whatever is shown stays; in the end it is what decoding all tokens at once, cut and trimmed, would have given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"

Decode = Callable[[list[int]], str]


class TextStream:
    """Text of one answer, grown token by token."""

    def __init__(self, decode: Decode, stops: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stops = [stop for stop in stops if stop]
        self._ids: list[int] = []
        self._start = 0  # tokens decoded again for their effect on the next ones
        self._read = 0  # tokens whose text was taken
        self._held = ""
        self._shown = False
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that this token lets out; "" where it has to wait. After a stop string there is none."""
        self._ids.append(token)
        before = self._decode(self._ids[self._start : self._read])
        after = self._decode(self._ids[self._start :])
        if len(after) <= len(before) or after.endswith(_INCOMPLETE):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return self._let_out(after[len(before) :])

    def finish(self) -> str:
        """The text that is still held back, at the end of the answer."""
        if self.stopped:
            return ""
        before = self._decode(self._ids[self._start : self._read])
        shown = self._let_out(self._decode(self._ids[self._start :])[len(before) :])
        left, self._held = ("" if self.stopped else self._held.rstrip()), ""
        return shown + self._trim(left)

    def _let_out(self, text: str) -> str:
        if self.stopped:
            return ""
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            out, self._held = self._held[: min(found)].rstrip(), ""
            return self._trim(out)
        ready = self._held[: len(self._held) - self._may_begin_a_stop()].rstrip()
        self._held = self._held[len(ready) :]
        return self._trim(ready)

    def _trim(self, text: str) -> str:
        """Without white space in front of the whole answer."""
        out = text if self._shown else text.lstrip()
        self._shown = self._shown or bool(out)
        return out

    def _may_begin_a_stop(self) -> int:
        """Length of the longest end of the held text with which a stop string begins."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            tail = self._held[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0
