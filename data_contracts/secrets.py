"""Passwords in URLs: found before they are kept, and masked before anything is shown."""

from __future__ import annotations

import re

_QUERY_KEY = re.compile(r"(?<=[?&])([\w.-]*(?:key|token|secret|password|signature)[\w.-]*)=[^&\s'\"]+", re.IGNORECASE)
_PASSWORD = re.compile(r"(?<=://)([^/\s:@]*):[^/\s]+@")


def has_password(text: str) -> bool:
    """True if a URL in the text carries a password (`scheme://user:password@host`, or a key in its query)."""
    return _PASSWORD.search(text) is not None or _QUERY_KEY.search(text) is not None


def mask(text: str) -> str:
    """The text with `***` for the password of every URL in it, and for a key that stands in a query."""
    return _QUERY_KEY.sub(r"\1=***", _PASSWORD.sub(r"\1:***@", text))
