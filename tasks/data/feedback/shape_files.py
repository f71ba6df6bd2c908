"""Files in the shapes of other tools: written whole or not at all, and only if they read back as what was written.

1. Each record becomes a row, in a file beside the final one; the same records give the same bytes.
2. That file is read as `plumbline ingest` would read it, and every record is compared with what came back. A prompt
   that the shape would change stops the export, by name.
3. The file gets its name.

Parquet holds metadata as JSON text: it has no column for what differs from row to row.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import IO, Any

import orjson

from plumbline.data_contracts.artifact import full_disk_as_stage_error, new_file, sha256_file
from plumbline.data_contracts.contract_suite import shorten
from plumbline.data_contracts.errors import StageError, UsageError
from plumbline.data_contracts.records import Feedback, PreferencePair, Quarantined
from plumbline.tasks.data.feedback import SOURCES
from plumbline.tasks.data.feedback.shapes import ABOUT, SHAPES, Container, ToolShape
from plumbline.tasks.data.feedback.unpaired_responses import SOURCE as UNPAIRED
from plumbline.tasks.params.feedback_limits import Limits

_ROWS = 1000  # of a row group
_ENDS: dict[str, Container] = {".jsonl": "jsonl", ".json": "json", ".parquet": "parquet"}

Records = Callable[[], Iterable[Feedback]]
"""The records to write, from their beginning each time."""


@dataclass(frozen=True, slots=True)
class Exported:
    """A file as written: its shape, container, records, bytes and SHA-256 (hex)."""

    path: str
    shape: str
    container: Container
    records: int
    bytes: int
    sha256: str


def container_of(path: Path, shape: str) -> Container:
    """The container that a path's ending names; the shape's usual one without an ending. Raises `UsageError`."""
    usual = SHAPES[shape].containers
    found = _ENDS.get(path.suffix.lower()) if path.suffix else usual[0]
    if found not in usual:
        ends = " or ".join(end for end, container in _ENDS.items() if container in usual)
        raise UsageError(f"{path}: expected a name that ends in {ends} for --to {shape}, found {path.name!r}.")
    return found


def write_shape(path: Path, shape: str, records: Records, limits: Limits) -> Exported:
    """Write records in a shape; replaces a file at `path`, once the new one was read back.

    Raises `UsageError` for a record that the shape has no room for and for a folder that is missing, `StageError` when
    the disk is full.
    """
    container, form = container_of(path, shape), SHAPES[shape]
    with full_disk_as_stage_error(path), _beside(path) as (file, scratch):
        count = _WRITERS[container](file, _rows(form, shape, records()))
        file.flush()
        os.fsync(file.fileno())
        _read_back(scratch, form, shape, records(), limits)
        done = Exported(str(path), shape, container, count, scratch.stat().st_size, sha256_file(scratch))
        os.replace(scratch, path)
    return done


@contextmanager
def _beside(path: Path) -> Iterator[tuple[IO[bytes], Path]]:
    """A new file in the folder of `path`, which is gone again unless the block renames it."""
    try:
        handle, scratch = new_file(path.parent, f".{path.name}.")
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise UsageError(f"{path}: cannot write there ({error.strerror}). Choose another place.") from error
    try:
        with os.fdopen(handle, "wb") as file:
            yield file, scratch
    finally:
        scratch.unlink(missing_ok=True)


def _rows(form: ToolShape, shape: str, records: Iterable[Feedback]) -> Iterator[dict[str, Any]]:
    for record in records:
        row = form.row(record)
        if row is None:
            raise _no_room(shape, record, "turns " + " ".join(turn.role for turn in record.prompt))
        yield row


def _read_back(path: Path, form: ToolShape, shape: str, records: Iterable[Feedback], limits: Limits) -> None:
    """Raise unless the file reads as the records that were written, each in its place."""
    source = "human_pairs" if form.kind is PreferencePair else UNPAIRED
    found = (row.outcome for row in SOURCES[source](path, path.name, limits))
    for record, outcome in zip_longest(records, found):
        if record is None or outcome is None:
            raise StageError(f"{path.name}: the file holds another number of records than were written. Report it.")
        if isinstance(outcome, Quarantined):
            raise _no_room(shape, record, f"{outcome.reason}: {outcome.field}: {outcome.found}")
        names = (*_texts(record), *form.carries)
        differing = [name for name in names if _value(record, name, form) != _value(outcome, name, form)]
        if differing:
            raise _no_room(shape, record, f"another {', '.join(differing)} when it is read back")


def _texts(record: Feedback) -> tuple[str, ...]:
    return (
        ("prompt", "chosen", "rejected") if isinstance(record, PreferencePair) else ("prompt", "response", "desirable")
    )


def _value(record: Feedback, name: str, form: ToolShape) -> Any:
    """A field; of the metadata the keys that the shape does not state anew."""
    value = getattr(record, name)
    return {key: value[key] for key in value if key not in form.restates} if name == "metadata" else value


def _no_room(shape: str, record: Feedback, found: str) -> UsageError:
    other = {"trl": "trl-conversational", "trl-unpaired": "trl-unpaired-conversational"}.get(shape)
    cure = f"Export --to {other}, which has room for it." if other else "Choose another shape."
    return UsageError(
        f"--to {shape}: expected {SHAPES[shape].needs}, found record {shorten(record.id)} with {found}. {cure} "
        f"Nothing was written."
    )


def _write_lines(file: IO[bytes], rows: Iterable[dict[str, Any]]) -> int:
    count = 0
    for count, row in enumerate(rows, 1):  # noqa: B007
        file.write(orjson.dumps(row) + b"\n")
    return count


def _write_array(file: IO[bytes], rows: Iterable[dict[str, Any]]) -> int:
    """One JSON array, a row on a line."""
    file.write(b"[")
    count = 0
    for count, row in enumerate(rows, 1):
        file.write((b",\n" if count > 1 else b"\n") + orjson.dumps(row))
    file.write(b"\n]\n")
    return count


def _write_parquet(file: IO[bytes], rows: Iterable[dict[str, Any]]) -> int:
    import pyarrow.parquet as pq

    rows, writer, count = map(_flat, rows), None, 0
    while piece := list(islice(rows, _ROWS)):
        writer = writer or pq.ParquetWriter(file, _schema(piece[0]), compression="zstd")
        writer.write_table(_table(piece, writer.schema))
        count += len(piece)
    if writer is not None:
        writer.close()
    return count


_WRITERS: dict[Container, Callable[[IO[bytes], Iterable[dict[str, Any]]], int]] = {
    "jsonl": _write_lines,
    "json": _write_array,
    "parquet": _write_parquet,
}


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    return row | ({"metadata": orjson.dumps(row["metadata"]).decode()} if "metadata" in row else {})


def _table(rows: list[dict[str, Any]], schema: Any) -> Any:
    import pyarrow as pa

    return pa.Table.from_pylist(rows, schema)


def _schema(row: dict[str, Any]) -> Any:
    """Columns of the shape by its first row, and all that say something about a record, which may be null."""
    import pyarrow as pa

    texts = [(name, _type(value)) for name, value in row.items() if name not in ABOUT]
    return pa.schema([*texts, *((name, pa.string()) for name in ABOUT)])


def _type(value: Any) -> Any:
    """The Arrow type of a text, a yes or no, a message, or a list of messages."""
    import pyarrow as pa

    if isinstance(value, list):
        return pa.list_(_type(value[0]))
    if isinstance(value, dict):
        return pa.struct([(name, pa.string()) for name in value])
    return pa.bool_() if isinstance(value, bool) else pa.string()
