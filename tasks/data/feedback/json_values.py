"""Values that JSON lacks, written as JSON."""

from __future__ import annotations

from typing import Any

import orjson


def dump_row(row: Any) -> bytes:
    """One row as canonical JSON (sorted keys); dates in ISO 8601, bytes as text, anything else by its name."""
    return orjson.dumps(row, default=_plain, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)


def _plain(value: Any) -> Any:
    """Convert a value that orjson does not know: Arrow gives bytes, decimals, durations and pandas timestamps."""
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="backslashreplace")
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
