"""From a record to every dataset that holds it: one small index a dataset, named by the dataset's DVC hash.

An index is an array (2, n) of uint64, in the order of row 0: the first eight bytes of SHA-256 of
a record id, and where its line is (`offset << 4 | file`, an index into `FILES`). It is a memory-mapped
binary search to ask one, so a thousand datasets of a million records cost about a thousand times twenty
reads. The line itself, read back from the dataset, says what became of the record, and rules out a
collision of the eight bytes. Being made from content, an index never goes stale and can be deleted.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

# Stored numbers point into this tuple: append only.
FILES = (
    "train.jsonl",
    "validation.jsonl",
    "test.jsonl",
    "merged.jsonl",
    "quarantine.jsonl",
    "accepted.jsonl",
)
_FILE_BITS = 4


@dataclass(frozen=True, slots=True)
class Place:
    """One line of a dataset that belongs to a record."""

    file: str
    offset: int


def index_path(folder: Path, digest: str) -> Path:
    """Where the index of the dataset with this DVC hash lies."""
    return folder / f"{digest.removesuffix('.dir')}.npy"


def build_index(files: dict[str, Path], path: Path) -> int:
    """Index a dataset's JSONL files, by their names in `FILES`, into `path`; return how many lines have an id."""
    keys: list[int] = []
    places: list[int] = []
    for number, name in enumerate(FILES):
        if name in files:
            for offset, line in _lines(files[name]):
                record = record_id(orjson.loads(line))
                if record is not None:
                    keys.append(_key(record))
                    places.append(offset << _FILE_BITS | number)
    index = np.array([keys, places], dtype=np.uint64)  # (2, n)
    index = index[:, np.argsort(index[0], kind="stable")]
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(prefix=".index-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            np.save(file, index)
        os.replace(scratch, path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise
    return len(keys)


def look_up(path: Path, record: str) -> list[Place]:
    """Where a dataset may hold a record; `read_line` tells a collision from a hit."""
    index: NDArray[np.uint64] = np.load(path, mmap_mode="r")
    key = np.uint64(_key(record))
    first, last = (int(np.searchsorted(index[0], key, side=side)) for side in ("left", "right"))
    values = [int(value) for value in index[1, first:last]]
    return [Place(FILES[value & (1 << _FILE_BITS) - 1], value >> _FILE_BITS) for value in sorted(values)]


def read_line(path: Path, place: Place, record: str) -> dict[str, Any] | None:
    """The record's line of a dataset file, or None when the line is another record's."""
    with path.open("rb") as file:
        file.seek(place.offset)
        entry: dict[str, Any] = orjson.loads(file.readline())
    return entry if record_id(entry) == record else None


def record_id(entry: dict[str, Any]) -> str | None:
    """The id of an accepted, curated, merged or quarantined record; None where a broken row has none."""
    value = entry.get("record_id", entry.get("id"))
    return None if value is None else str(value)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    offset = 0
    with path.open("rb") as file:
        for line in file:
            yield offset, line
            offset += len(line)


def _key(record: str) -> int:
    return int.from_bytes(hashlib.sha256(record.encode()).digest()[:8])
