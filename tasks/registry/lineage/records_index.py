"""From a record to every dataset that holds it: one small index a dataset, named by the dataset's DVC hash.

An index is an array (2, n) of uint64, in the order of row 0: the first eight bytes of SHA-256 of
a record id, and where its line is (`offset << 4 | file`, an index into `FILES`). It is a memory-mapped
binary search to ask one, so a thousand datasets of a million records cost about a thousand times twenty
reads. The line itself, read back from the dataset, has the record's outcome, and rules out a
collision of the eight bytes. Being made from content, an index never goes stale and can be deleted.

Beside it stands the dataset's account, `<hash>.json`: for each file, how many lines each annotator, each raw
batch, each token (of feedback sent over HTTP) and each judge's rubric contributed. It answers "who labelled this?"
without reading the lines again.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from plumbline.data_contracts.artifact import new_file, write_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Stored numbers point into this tuple: append only.
FILES = (
    "train.jsonl",
    "validation.jsonl",
    "test.jsonl",
    "merged.jsonl",
    "quarantine.jsonl",
    "accepted.jsonl",
    "unpaired.jsonl",
)
_FILE_BITS = 4
ANNOTATORS, BATCHES, TOKENS, PROMPTS, LINES = "annotators", "batches", "tokens", "judge_prompts", "lines"

Account = dict[str, dict[str, dict[str, int]]]
"""Kind of count -> file of the dataset without its suffix -> name -> lines."""


@dataclass(frozen=True, slots=True)
class Place:
    """One line of a dataset that belongs to a record."""

    file: str
    offset: int


def index_path(folder: Path, digest: str) -> Path:
    """The path of the index of the dataset with this DVC hash."""
    return folder / f"{digest.removesuffix('.dir')}.npy"


def account_path(folder: Path, digest: str) -> Path:
    """The path of the account of the dataset with this DVC hash."""
    return index_path(folder, digest).with_suffix(".json")


def build_index(files: dict[str, Path], path: Path) -> int:
    """Index a dataset's JSONL files, by their names in `FILES`, into `path`, its account first.

    Returns how many ids its lines have.
    """
    import numpy as np

    keys: list[int] = []
    places: list[int] = []
    counts: defaultdict[str, defaultdict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    for number, name in enumerate(FILES):
        if name in files:
            for offset, line in _lines(files[name]):
                entry = orjson.loads(line)
                for what, whose in _contributors(entry):
                    counts[what][name.removesuffix(".jsonl")][whose] += 1
                for record in names_of(entry):
                    keys.append(_key(record))
                    places.append(offset << _FILE_BITS | number)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path.with_suffix(".json"), counts)
    _write_index(path, np.array([keys, places], dtype=np.uint64))
    return len(keys)


def _write_index(path: Path, index: NDArray[np.uint64]) -> None:
    import numpy as np

    index = index[:, np.argsort(index[0], kind="stable")]  # (2, n)
    handle, scratch = new_file(path.parent, ".index-")
    try:
        with os.fdopen(handle, "wb") as file:
            np.save(file, index)
        os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def read_account(path: Path) -> Account:
    """The account that `build_index` left beside an index."""
    account: Account = orjson.loads(path.read_bytes())
    return account


def _contributors(entry: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The contributors of one line: ("annotators", name) and so on."""
    yield LINES, "all"
    if entry.get("annotator"):
        yield ANNOTATORS, str(entry["annotator"])
    origin = entry.get("origin") or entry
    if isinstance(origin, Mapping) and origin.get("file"):
        yield BATCHES, str(origin["file"])
        for sender in origin.get("senders") or ():
            yield TOKENS, str(sender)
    judge = (entry.get("metadata") or {}).get("judge")
    rubric = judge.get("rubric") if isinstance(judge, Mapping) else None
    if isinstance(rubric, Mapping) and _is_rubric(rubric):
        yield PROMPTS, f"{rubric['name']}@{rubric['version']} {rubric['digest']}"


def look_up(path: Path, record: str) -> list[Place]:
    """The places at which a dataset may hold a record; `read_line` tells a collision from a hit."""
    import numpy as np

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
    return entry if record in names_of(entry) else None


def names_of(entry: Mapping[str, Any]) -> list[str]:
    """The ids of an accepted, curated, merged or quarantined record: its own, and the one that its source gave it.

    None if a broken row has none.
    """
    values = (entry.get("record_id", entry.get("id")), entry.get("given_id"))
    return list(dict.fromkeys(str(value) for value in values if value is not None))


def _is_rubric(rubric: Mapping[str, Any]) -> bool:
    """True if it is what our judges write: a row may claim anything."""
    return (
        isinstance(rubric.get("version"), int)
        and re.fullmatch(r"[^\s@]{1,200}", str(rubric.get("name"))) is not None
        and re.fullmatch(r"[0-9a-f]{64}", str(rubric.get("digest"))) is not None
    )


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    offset = 0
    with path.open("rb") as file:
        for line in file:
            yield offset, line
            offset += len(line)


def _key(record: str) -> int:
    return int.from_bytes(hashlib.sha256(record.encode()).digest()[:8])
