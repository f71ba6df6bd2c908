"""The map of a batch: which column is which, beside the batch and not in it, so that a later run reads it alike.

`.<batch>.<number>-<digest>.map` lies beside `<batch>.<container>`. It is named by the digest of its own bytes,
read-only, and versioned with the raw store. The map with the highest number holds: a batch that comes again with
another map is read by that one from then on, and the earlier map stays on record.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import orjson

from plumbline.data_contracts.artifact import write_read_only
from plumbline.data_contracts.errors import ArtifactError

_SUFFIX = ".map"


def keep_map(folder: Path, batch_digest: str, columns: Mapping[str, str], *, beside: Path | None = None) -> None:
    """Write down the map of a batch, unless it is empty or holds already.

    `beside`: another folder with earlier maps of the batch, where this one waits for its place in the store.
    """
    stem = batch_digest[:16]
    known = {path.name: path for each in (folder, beside) if each for path in _maps(each, stem)}
    latest = known[max(known)] if known else None
    if not columns or dict(columns) == (_read(latest) if latest else {}):
        return
    data = orjson.dumps(dict(columns), option=orjson.OPT_SORT_KEYS) + b"\n"
    folder.mkdir(parents=True, exist_ok=True)
    name = f".{stem}.{len(known) + 1:06d}-{hashlib.sha256(data).hexdigest()[:16]}{_SUFFIX}"
    write_read_only(folder / name, data)


def columns_of(batch: Path) -> Mapping[str, str]:
    """The map of a batch file; empty if it has none. Raises `ArtifactError` for a map that was changed."""
    maps = _maps(batch.parent, batch.name.partition(".")[0])
    return _read(maps[-1]) if maps else {}


def map_of(digest: str, *stores: Path | None) -> Mapping[str, str]:
    """The map that a batch of this digest has in one of these stores already, of whatever source."""
    found = {path.name: path for store in stores if store for path in store.glob(f"*/.{digest[:16]}.*{_SUFFIX}")}
    return _read(found[max(found)]) if found else {}


def map_digest(batch: Path) -> str:
    """A digest that tells the map of a batch from others, for caches; empty if it has none."""
    columns = columns_of(batch)
    return hashlib.sha256(orjson.dumps(dict(columns), option=orjson.OPT_SORT_KEYS)).hexdigest()[:12] if columns else ""


def _maps(folder: Path, stem: str) -> list[Path]:
    return sorted(folder.glob(f".{stem}.*{_SUFFIX}")) if stem else []


def _read(path: Path) -> Mapping[str, str]:
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest()[:16] != path.stem.rpartition("-")[2]:
        raise ArtifactError(
            f"{path}: expected the map of a batch, found other bytes than its name says. The raw store is append-only "
            f"and this file was changed; `plumbline doctor --fix` brings it back."
        )
    columns: Mapping[str, str] = orjson.loads(data)
    return columns
