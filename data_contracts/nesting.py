"""The depth of a JSON text, found before it is parsed."""

from __future__ import annotations

import re
from itertools import accumulate

MAX_LEVELS = 200
"""Most levels of lists and objects in a row of feedback: pydantic writes no more than 255."""

# whole or cut off by the end; possessive, so that no text makes it go over a byte twice
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


def levels(text: bytes) -> int:
    """Levels of lists and objects in a JSON text, by its brackets outside strings; naive equivalent: parse, recurse."""
    brackets = without_strings(text).translate(None, _NO_BRACKETS)
    return max(accumulate(_STEPS[byte] for byte in brackets), default=0)


def deeper_than(text: bytes, limit: int) -> bool:
    """True if a JSON text has more levels than `limit`; text with few brackets is not looked at closely."""
    return openers(text) > limit and levels(text) > limit


def openers(text: bytes) -> int:
    """Opening brackets, those in strings too: at least as many as lists and objects."""
    return text.count(b"[") + text.count(b"{")


def without_strings(text: bytes) -> bytes:
    """A JSON text without its strings, one that does not end included."""
    return _STRING.sub(b"", text)
