"""The journal of an erasure under way: what it is to do, written first and removed last.

It is the one file that holds the texts to look for, so that a rerun completes what a crash left. It goes once a search
has found nothing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from plumbline.data_contracts.artifact import write_bytes
from plumbline.data_contracts.errors import ArtifactError
from plumbline.tasks.data.ingest_feedback import ERASURE
from plumbline.tasks.storage.versioning.tombstones import Tombstone, tombstone_of


@dataclass(frozen=True, slots=True)
class ErasureRequest:
    """The thing to erase: one kind (`record`, `annotator` or `matching`) and its value."""

    kind: str
    value: str


@dataclass(frozen=True, slots=True)
class Journal:
    """A planned erasure. `report`: what the command says of it; `hits`: the files to remove, by what they are."""

    request: ErasureRequest
    tombstone: Tombstone
    needles: tuple[bytes, ...]
    traffic: tuple[str, ...]
    hits: dict[str, list[str]]
    report: dict[str, Any] = field(default_factory=dict)


def keep_journal(root: Path, journal: Journal) -> None:
    """Write the journal, whole or not at all."""
    entry = asdict(journal) | {"needles": [needle.hex() for needle in journal.needles]}
    write_bytes(root / ERASURE, orjson.dumps(entry))
    (root / ERASURE).chmod(0o600)


def read_journal(root: Path) -> Journal | None:
    """The erasure that was cut off, or None. Raises `ArtifactError` for a journal that was changed."""
    try:
        found = orjson.loads((root / ERASURE).read_bytes())
        return Journal(
            request=ErasureRequest(**found["request"]),
            tombstone=tombstone_of(found["tombstone"]),
            needles=tuple(map(bytes.fromhex, found["needles"])),
            traffic=tuple(found["traffic"]),
            hits=found["hits"],
            report=found["report"],
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{root / ERASURE}: expected the journal of an erasure, found: {error}. Move it away, and erase again."
        ) from error


def drop_journal(root: Path) -> None:
    """Remove the journal: the erasure is complete."""
    (root / ERASURE).unlink(missing_ok=True)
