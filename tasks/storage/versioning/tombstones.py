"""Tombstones: what was erased from the raw store and from DVC's objects, when, by whom and why; no content of it.

Each is a read-only file of the raw store, `.erasure-<number>-<digest>.json`, versioned with it and named by the digest
of its own bytes. It names each batch by its old and new path and digest with the erased line numbers, the objects that
were deleted by their md5, and the records by the SHA-256 of their ids. It is signed: see `Tombstone.signed`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from plumbline.data_contracts.artifact import write_read_only
from plumbline.data_contracts.errors import ArtifactError

RAW = Path("data") / "raw"
_PREFIX = ".erasure-"


@dataclass(frozen=True, slots=True)
class ErasedLines:
    """One batch: paths in the workspace, SHA-256 (hex) of the bytes before and after, erased lines (1-based)."""

    old: str
    old_sha256: str
    new: str | None
    new_sha256: str | None
    lines: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Tombstone:
    """One erasure. `new` of a batch is None if none of its rows was left."""

    at: str
    by: str
    reason: str
    batches: tuple[ErasedLines, ...]
    objects: tuple[str, ...]
    records: tuple[str, ...]
    signature: str = ""

    @property
    def signed(self) -> bytes:
        """The bytes that the signature is over."""
        facts = {name: value for name, value in asdict(self).items() if name != "signature"}
        return orjson.dumps({"purpose": "plumbline.erasure", **facts}, option=orjson.OPT_SORT_KEYS)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of all that is signed."""
        return hashlib.sha256(self.signed).hexdigest()

    @property
    def text(self) -> str:
        """The erasure in words, for audits and errors."""
        return f"erased on {self.at} by {self.by}, because {self.reason}."


def tombstone_of(found: Mapping[str, Any]) -> Tombstone:
    """The tombstone that a JSON object spells. Raises `KeyError` or `TypeError` for an object that spells none."""
    batches = tuple(ErasedLines(**{**each, "lines": tuple(each["lines"])}) for each in found["batches"])
    lists = {name: tuple(found[name]) for name in ("objects", "records")}
    return Tombstone(**{**found, "batches": batches, **lists})


def record_name(record: str) -> str:
    """The name of a record in tombstones: the SHA-256 (hex) of its id, which may be a person's name."""
    return hashlib.sha256(record.encode()).hexdigest()


def keep_tombstone(root: Path, tombstone: Tombstone) -> Path:
    """Append a tombstone to the raw store, unless it is there. Call while no other process writes into the store."""
    stored = list(_stored(root))
    for path, known in stored:
        if known.digest == tombstone.digest:
            return path
    data = orjson.dumps(asdict(tombstone), option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2) + b"\n"
    path = root / RAW / f"{_PREFIX}{len(stored) + 1:06d}-{hashlib.sha256(data).hexdigest()[:16]}.json"
    write_read_only(path, data)
    return path


def load_tombstones(root: Path, accepts: Callable[[bytes, str], bool] | None = None) -> list[Tombstone]:
    """The erasures of a workspace, the oldest first; with `accepts` those alone whose signature it accepts.

    Raises `ArtifactError` for one that was changed.
    """
    found = (tombstone for _, tombstone in _stored(root))
    return [each for each in found if accepts is None or accepts(each.signed, each.signature)]


def _stored(root: Path) -> Iterator[tuple[Path, Tombstone]]:
    for path in sorted((root / RAW).glob(f"{_PREFIX}*.json")):
        yield path, _read(path)


def _read(path: Path) -> Tombstone:
    data = path.read_bytes()
    try:
        if hashlib.sha256(data).hexdigest()[:16] != path.stem.rsplit("-", 1)[1]:
            raise ValueError("its bytes are not those that its name says")
        return tombstone_of(orjson.loads(data))
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ArtifactError(
            f"{path}: expected the record of an erasure, found: {error}. The raw store is append-only and this file "
            f"was changed; `plumbline doctor --fix` brings it back."
        ) from error
