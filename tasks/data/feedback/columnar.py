"""Rows of Parquet, Arrow and Feather files as JSON.

Texts stay in their dictionaries, so that a value that is stored once is held once, and a row over the limit is never
built. Index columns of pandas without a name (`__index_level_0__`) are left to the reader, which drops them.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

from plumbline.tasks.data.feedback.arrow_sizes import decoded_sizes
from plumbline.tasks.data.feedback.compression import too_large
from plumbline.tasks.data.feedback.json_values import dump_row

PARQUET, ARROW_FILE, ARROW_STREAM = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"
"""First bytes of these files."""

_ROWS = 1000  # at a time
_BYTES = 1 << 26  # of rows turned into Python objects at a time


def parquet_rows(path: Path, shown: Path | str, most_row: int, most: int | None) -> Iterator[tuple[int, bytes]]:
    """Rows of a Parquet file with their numbers. Raises `UsageError` when it holds more than `most` bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, read_dictionary=_text_columns(path)) as file:
            if most is not None and _stored_bytes(file.metadata) > most:
                raise too_large(shown, most)
            yield from _numbered(file.iter_batches(batch_size=_ROWS), shown, most_row, most)
    except pa.ArrowException as error:
        raise OSError(str(error)) from error


def arrow_rows(path: Path, shown: Path | str, most_row: int, most: int | None) -> Iterator[tuple[int, bytes]]:
    """Rows of an Arrow file, Feather file or Arrow stream with their numbers, as `parquet_rows`."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source:
            is_file = source.read(len(ARROW_FILE)) == ARROW_FILE
            if most is not None and any(size > most for size in accumulate(decoded_sizes(source, is_file=is_file))):
                raise too_large(shown, most)
            yield from _numbered(map(_sound, _batches(source, is_file=is_file)), shown, most_row, most)
    except pa.ArrowException as error:
        raise OSError(str(error)) from error


def _batches(source: Any, *, is_file: bool) -> Iterator[Any]:
    import pyarrow as pa

    source.seek(0)
    if is_file:
        with pa.ipc.open_file(source) as file:
            yield from (file.get_batch(place) for place in range(file.num_record_batches))
    else:
        with pa.ipc.open_stream(source) as stream:
            yield from stream


def _sound(batch: Any) -> Any:
    """The batch, once its offsets and texts are known to be sound: Arrow reads what a file says without a look."""
    batch.validate(full=True)
    return batch


def _numbered(
    batches: Iterator[Any], shown: Path | str, most_row: int, most: int | None
) -> Iterator[tuple[int, bytes]]:
    number = total = 0
    for batch in batches:
        for begin in range(0, batch.num_rows, _ROWS):
            for text in _json_rows(batch.slice(begin, _ROWS), most_row):
                number += 1
                total += len(text)
                if most is not None and total > most:
                    raise too_large(shown, most)
                yield number, text


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
    if sum(map(_weight, batch.columns)) <= _BYTES:
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
