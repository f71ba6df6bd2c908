"""Sources of human feedback: files in any known format become records of one contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tasks.feedback import human_pairs

SOURCES: Mapping[str, Callable[[Path, str], Iterator[human_pairs.ReadRow]]] = {
    "human_pairs": human_pairs.read,
}
"""Kind of feedback -> how its files are read: `read(path, origin)` yields every row, in order."""
