"""The containers in which rows come: JSON lines plain, gzip or zstd, and Parquet, distinguished by their first bytes.

Whatever the container, a reader meets one JSON text per row, with its 1-based number: the line of the
(decompressed) text, or the row of a Parquet file. Blank lines are skipped, and counted as lines. Memory and time are
bounded by `Limits`: a row over the limit comes cut to one byte more than it, which is how its reader knows.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any, Literal

import orjson

from plumbline.data_contracts.errors import UnreadableFile, UsageError
from plumbline.data_contracts.extras import needs_extra
from plumbline.tasks.data.feedback.foreign import EXPECTED, refuse_foreign_bytes, refuse_foreign_text
from plumbline.tasks.params.feedback_limits import LIMITS, Limits

Container = Literal["jsonl", "jsonl.gz", "jsonl.zst", "parquet"]

_MAGIC: tuple[tuple[bytes, Container], ...] = (
    (b"\x1f\x8b", "jsonl.gz"),
    (b"\x28\xb5\x2f\xfd", "jsonl.zst"),
    (b"PAR1", "parquet"),
)
_BOM = b"\xef\xbb\xbf"
_CHUNK = 1 << 20  # bytes read at a time
_ZSTD_CHUNK = 512  # bytes undone at a time: zstd turns 4 bytes into 128 KiB where it can
_HEAD = 4096  # bytes looked at to tell text from other things
_TEXT_HEAD = 1 << 18  # bytes of text looked at to tell JSON lines from other text
_PARQUET_ROWS = 1000
_PARQUET_BYTES = 1 << 26  # of rows turned into Python objects at a time


def recognise_container(path: Path, shown: Path | str | None = None) -> Container:
    """Tell a file's container from its first bytes, whatever its name; messages call it `shown`.

    Raises `UsageError` for a file that cannot be read, and `UnreadableFile` for one that is empty, or is neither text
    nor a known container.
    """
    shown = path if shown is None else shown
    head = _read_head(path)
    if not head:
        raise UnreadableFile(f"{shown}: expected {EXPECTED}, found an empty file. Check that its export ended well.")
    for magic, container in _MAGIC:
        if head.startswith(magic):
            return container
    refuse_foreign_bytes(head, shown)
    return "jsonl"


def read_lines(path: Path, shown: Path | str | None = None, limits: Limits = LIMITS) -> Iterator[tuple[int, bytes]]:
    """Each row of a file as its 1-based number and its JSON text, streamed.

    A row longer than `limits.max_row_bytes` comes cut to one byte more. Raises `UsageError` when the file cannot be
    read or is larger than `limits` allow, and `UnreadableFile` when it is of no known container, is damaged, or holds
    something else than one JSON object per line.
    """
    shown = path if shown is None else shown
    container = recognise_container(path, shown)
    try:
        if container == "parquet":
            yield from _parquet_rows(path, shown, limits)
        else:
            yield from _text_lines(path, shown, container, limits)
    except (OSError, EOFError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk's fault, not the file's
            raise unreadable(shown, error) from error
        raise UnreadableFile(
            f"{shown}: expected {container} to be readable to its end, found: {error}. "
            f"The file is damaged or was cut off: copy or export it again."
        ) from error


def dump_row(row: Any) -> bytes:
    """One row as canonical JSON (sorted keys); dates in ISO 8601, bytes as text, anything else by its name."""
    return orjson.dumps(row, default=_plain, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)


def no_such_file(path: Path | str) -> UsageError:
    """The error for a path if nothing is."""
    return UsageError(f"{path}: no such file. Check the path; it is relative to the current folder.")


def unreadable(path: Path | str, error: OSError) -> UsageError:
    """The error for a file that the system does not let us read."""
    return UsageError(f"{path}: expected a readable file, found: {error.strerror}.")


def _read_head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD)
    except FileNotFoundError as error:
        raise no_such_file(path) from error
    except OSError as error:
        raise unreadable(path, error) from error


def _text_lines(path: Path, shown: Path | str, container: Container, limits: Limits) -> Iterator[tuple[int, bytes]]:
    chunks = _chunks(path, shown, container, limits)
    head, whole = _first(chunks)
    if container != "jsonl":
        refuse_foreign_bytes(head, shown, inside=container)
    refuse_foreign_text(head.removeprefix(_BOM), shown, whole=whole)
    for number, line in enumerate(_split_lines(chain([head], chunks), limits.max_row_bytes), 1):
        text = line.removeprefix(_BOM) if number == 1 else line
        if len(text) > limits.max_row_bytes or (text := text.strip(b" \t\r\n")):
            yield number, text


def _first(chunks: Iterator[bytes]) -> tuple[bytes, bool]:
    """The beginning of a text, and whether that is all of it."""
    parts, size = [], 0
    for chunk in chunks:
        parts.append(chunk)
        size += len(chunk)
        if size >= _TEXT_HEAD:
            return b"".join(parts), False
    return b"".join(parts), True


def _split_lines(chunks: Iterator[bytes], most: int | None = None) -> Iterator[bytes]:
    """The lines of a text, each byte looked at once; of a line over `most` bytes the first `most + 1`."""
    end = None if most is None else most + 1
    parts: list[bytes] = []  # of the line that has not ended yet
    held = 0
    for chunk in chunks:
        *ended, rest = chunk.split(b"\n")
        for line in ended:
            yield b"".join([*parts, line])[:end] if parts else line[:end]
            parts, held = [], 0
        if rest and (end is None or held < end):
            parts.append(rest)
            held += len(rest)
    if parts:
        yield b"".join(parts)[:end]


def _chunks(path: Path, shown: Path | str, container: Container, limits: Limits) -> Iterator[bytes]:
    with path.open("rb") as raw:
        if container == "jsonl":
            yield from iter(lambda: raw.read(_CHUNK), b"")
            return
        total, most = 0, limits.max_decoded_bytes
        for chunk in _zstd_chunks(raw) if container == "jsonl.zst" else _gzip_chunks(raw):
            total += len(chunk)
            if most is not None and total > most:
                raise _too_large(shown, most)
            yield chunk


def _too_large(shown: Path | str, most: int) -> UsageError:
    return UsageError(
        f"{shown}: expected at most {most:,} bytes once it is decompressed (feedback.max_decoded_bytes), found more. "
        f"Give it in parts, or raise feedback.max_decoded_bytes if you trust its origin."
    )


def _gzip_chunks(raw: IO[bytes]) -> Iterator[bytes]:
    with gzip.open(raw, "rb") as unzipped:
        yield from iter(lambda: unzipped.read(_CHUNK), b"")


def _zstd_chunks(raw: IO[bytes]) -> Iterator[bytes]:
    """Decompress frame by frame; zstandard's own stream reader takes a file that was cut off for a whole one."""
    with needs_extra("zstd", "feedback compressed with zstd"):
        import zstandard

    frame = zstandard.ZstdDecompressor().decompressobj()
    try:
        while data := raw.read(_ZSTD_CHUNK):
            while data:
                if frame.eof:
                    frame = zstandard.ZstdDecompressor().decompressobj()
                yield frame.decompress(data)
                data = frame.unused_data
    except zstandard.ZstdError as error:
        raise OSError(str(error)) from error
    if not frame.eof:
        raise EOFError("the last zstd frame does not end")


def _parquet_rows(path: Path, shown: Path | str, limits: Limits) -> Iterator[tuple[int, bytes]]:
    """Rows of a Parquet file. Texts stay in their dictionaries: a value that is stored once is held once."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    most = limits.max_decoded_bytes
    number = total = 0
    try:
        with pq.ParquetFile(path, read_dictionary=_text_columns(path)) as file:
            if most is not None and _stored_bytes(file.metadata) > most:
                raise _too_large(shown, most)
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
                for text in _json_rows(batch, limits.max_row_bytes):
                    number += 1
                    total += len(text)
                    if most is not None and total > most:
                        raise _too_large(shown, most)
                    yield number, text
    except pa.ArrowException as error:
        raise OSError(str(error)) from error


def _text_columns(path: Path) -> list[str]:
    """The leaves of a file's schema that hold texts or bytes."""
    import pyarrow.parquet as pq

    schema = pq.read_metadata(path).schema
    columns = (schema.column(place) for place in range(len(schema)))
    return [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]


def _stored_bytes(metadata: Any) -> int:
    """Bytes of all columns once their compression is undone, by the file's own account, 4 a value at least."""
    groups = (metadata.row_group(place) for place in range(metadata.num_row_groups))
    columns = (group.column(place) for group in groups for place in range(group.num_columns))
    return sum(max(column.total_uncompressed_size, 4 * column.num_values) for column in columns)


def _json_rows(batch: Any, most: int) -> Iterator[bytes]:
    """The rows of an Arrow batch as JSON, cut where they are over `most` bytes, and never built where they are huge."""
    if sum(map(_weight, batch.columns)) <= _PARQUET_BYTES:
        yield from (dump_row(row)[: most + 1] for row in batch.to_pylist())
        return
    for place in range(batch.num_rows):
        row = batch.slice(place, 1)
        weight = sum(map(_weight, row.columns))
        yield (
            f"a row of about {weight:,} bytes".encode().ljust(most + 1)
            if weight > most
            else dump_row(row.to_pylist()[0])[: most + 1]
        )


def _weight(array: Any) -> int:
    """Bytes of an Arrow array's values, each counted as often as it occurs."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = array.type
    if pa.types.is_dictionary(kind):
        lengths = pc.binary_length(array.dictionary) if _is_text(kind.value_type) else None
        return 8 * len(array) if lengths is None else int(pc.sum(pc.take(lengths, array.indices)).as_py() or 0)
    if _is_text(kind):
        return int(pc.sum(pc.binary_length(array)).as_py() or 0)
    if pa.types.is_struct(kind):
        return sum(_weight(array.field(place)) for place in range(kind.num_fields))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_map(kind):
        # of a slice `values` are those of the whole array
        begin, end = array.offsets[0].as_py(), array.offsets[len(array)].as_py()
        return _weight(array.values.slice(begin, end - begin)) if len(array) else 0
    return 8 * len(array)


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    names = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(check(kind) for check in names)


def _plain(value: Any) -> Any:
    """Convert a value that orjson does not know: Arrow gives bytes, decimals, durations and pandas timestamps."""
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="backslashreplace")
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
