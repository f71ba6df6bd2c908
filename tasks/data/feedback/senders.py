"""Senders of the rows of a batch: the name of the token, beside the batch and not in it, where no sender writes.

`.<batch>.<digest>.senders` lies beside `<batch>.<container>` and maps a sender to the lines that came from it, as
ranges: {"app": [[1, 40], [55, 55]]}. It is named by the digest of its own bytes, read-only, and versioned with the raw
store; it is there before the batch is. A batch that came twice, byte for byte, from different senders has two. What a
row says of itself is never asked: a client can write into its rows whatever it likes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import orjson

from plumbline.data_contracts.artifact import write_read_only
from plumbline.data_contracts.errors import ArtifactError

_SUFFIX = ".senders"
SendersOf = Callable[[int], tuple[str, ...]]
"""The senders of a line (1-based); nothing if the file was ingested by a person."""


def keep_senders(folder: Path, batch_digest: str, senders: Sequence[str | None]) -> None:
    """Write down who sent each line of a batch (None: not known), in line order, before the batch is there."""
    ranges: dict[str, list[list[int]]] = {}
    for line, sender in enumerate(senders, 1):
        if sender is None:
            continue
        known = ranges.setdefault(sender, [])
        if known and known[-1][1] == line - 1:
            known[-1][1] = line
        else:
            known.append([line, line])
    if not ranges:
        return
    data = orjson.dumps(ranges, option=orjson.OPT_SORT_KEYS) + b"\n"
    path = folder / f".{batch_digest[:16]}.{hashlib.sha256(data).hexdigest()[:16]}{_SUFFIX}"
    if path.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_read_only(path, data)


def senders_of(batch: Path) -> SendersOf:
    """The senders of the lines of a batch file. Raises `ArtifactError` for a record of senders that was changed."""
    found = [_read(path) for path in sorted(batch.parent.glob(f".{batch.name.partition('.')[0]}.*{_SUFFIX}"))]
    lines: dict[int, tuple[str, ...]] = {}
    for name, (first, last) in sorted(
        (name, span) for ranges in found for name, spans in ranges.items() for span in spans
    ):
        for line in range(first, last + 1):
            lines[line] = (*lines.get(line, ()), name)
    return lambda line: lines.get(line, ())


def _read(path: Path) -> Mapping[str, Sequence[tuple[int, int]]]:
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest()[:16] != path.name.split(".")[2]:
        raise ArtifactError(
            f"{path}: expected who sent the lines of a batch, found other bytes than its name says. The raw store is "
            f"append-only and this file was changed; `plumbline doctor --fix` brings it back."
        )
    ranges: Mapping[str, Sequence[tuple[int, int]]] = orjson.loads(data)
    return ranges
