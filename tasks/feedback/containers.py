"""The containers in which rows come: JSON lines plain, gzip or zstd, and Parquet, told apart by their first bytes.

Whatever the container, a reader meets one JSON text a row, with its 1-based number: the line of the
(decompressed) text, or the row of a Parquet file. Blank lines are skipped, and counted as lines.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal

import orjson

from data_contracts.errors import UsageError

Container = Literal["jsonl", "jsonl.gz", "jsonl.zst", "parquet"]

_MAGIC: tuple[tuple[bytes, Container], ...] = (
    (b"\x1f\x8b", "jsonl.gz"),
    (b"\x28\xb5\x2f\xfd", "jsonl.zst"),
    (b"PAR1", "parquet"),
)
_BOM = b"\xef\xbb\xbf"
_CHUNK = 1 << 20  # bytes read at a time
_HEAD = 4096  # bytes looked at to tell text from other things
_EXPECTED = "JSON lines (plain, gzip or zstd) or Parquet"


def recognise_container(path: Path) -> Container:
    """Tell a file's container from its first bytes, whatever its name.

    Raises `UsageError` for a file that cannot be read, is empty, or is neither text nor a known container.
    """
    head = _read_head(path)
    if not head:
        raise UsageError(f"{path}: expected {_EXPECTED}, found an empty file. Check that its export ended well.")
    for magic, container in _MAGIC:
        if head.startswith(magic):
            return container
    if b"\x00" in head:
        raise UsageError(
            f"{path}: expected {_EXPECTED}, found binary data that starts with {head[:8]!r}. "
            f"Convert it (UTF-16 text: `iconv -f UTF-16 -t UTF-8`)."
        )
    return "jsonl"


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Each row of a file as its 1-based number and its JSON text, streamed.

    Raises `UsageError` when the file cannot be read, is of no known container, is damaged, or holds
    one JSON array in place of lines.
    """
    container = recognise_container(path)
    try:
        if container == "parquet":
            yield from _parquet_rows(path)
        else:
            yield from _text_lines(path, container)
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(
            f"{path}: expected {container} to be readable to its end, found: {error}. "
            f"The file is damaged or was cut off: copy or export it again."
        ) from error


def dump_row(row: Any) -> bytes:
    """One row as canonical JSON (sorted keys); dates in ISO 8601, bytes as text, anything else by its name."""
    return orjson.dumps(row, default=_plain, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)


def _read_head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD)
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file. Check the path; it is relative to the current folder.") from error
    except OSError as error:
        raise UsageError(f"{path}: expected a readable file, found: {error.strerror}.") from error


def _text_lines(path: Path, container: Container) -> Iterator[tuple[int, bytes]]:
    first = True
    for number, line in enumerate(_split_lines(_chunks(path, container)), 1):
        text = line.removeprefix(_BOM) if number == 1 else line
        text = text.strip(b" \t\r\n")
        if not text:
            continue
        if first:
            _refuse_array(path, text)
            first = False
        yield number, text


def _refuse_array(path: Path, first_line: bytes) -> None:
    """Tell a file that is one JSON array from a first line that is merely a bad row."""
    if not first_line.startswith(b"["):
        return
    try:
        value = orjson.loads(first_line)
    except orjson.JSONDecodeError:
        value = [{}]  # the array goes on over the next lines
    if value and all(isinstance(item, dict) for item in value):
        raise UsageError(
            f"{path}: expected one JSON object a line, found one JSON array. Convert it: `jq -c '.[]' {path.name}`."
        )


def _split_lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole
    if rest:
        yield rest


def _chunks(path: Path, container: Container) -> Iterator[bytes]:
    with path.open("rb") as raw:
        if container == "jsonl.zst":
            yield from _zstd_chunks(raw)
        elif container == "jsonl.gz":
            with gzip.open(raw, "rb") as unzipped:
                yield from iter(lambda: unzipped.read(_CHUNK), b"")
        else:
            yield from iter(lambda: raw.read(_CHUNK), b"")


def _zstd_chunks(raw: IO[bytes]) -> Iterator[bytes]:
    """Decompress frame by frame; zstandard's own stream reader takes a file that was cut off for a whole one."""
    import zstandard

    frame = zstandard.ZstdDecompressor().decompressobj()
    try:
        while data := raw.read(_CHUNK):
            while data:
                if frame.eof:
                    frame = zstandard.ZstdDecompressor().decompressobj()
                yield frame.decompress(data)
                data = frame.unused_data
    except zstandard.ZstdError as error:
        raise OSError(str(error)) from error
    if not frame.eof:
        raise EOFError("the last zstd frame does not end")


def _parquet_rows(path: Path) -> Iterator[tuple[int, bytes]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        number = 0
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                for row in batch.to_pylist():
                    number += 1
                    yield number, dump_row(row)
    except pa.ArrowException as error:
        raise OSError(str(error)) from error


def _plain(value: Any) -> Any:
    """What orjson does not know: Arrow gives bytes, decimals, durations and pandas timestamps."""
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="backslashreplace")
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
