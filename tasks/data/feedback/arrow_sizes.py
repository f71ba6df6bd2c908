"""The size of an Arrow file once its buffers are decompressed, from its own account, before anything is decompressed.

Arrow compresses buffer by buffer; each begins with its size as a 64-bit integer, -1 where it is stored plainly. Where
buffers lie is in the flatbuffer of each message (github.com/apache/arrow, `format/Message.fbs`), which pyarrow does not
show.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

_DICTIONARY, _BATCH = 2, 3  # header types of a message
_HEADER_TYPE, _HEADER = 1, 2  # fields of a message
_DATA = 1  # field of a dictionary batch
_BUFFERS, _COMPRESSION = 2, 3  # fields of a record batch
_MAGIC_BYTES = 8  # of a file, before its messages


def decoded_sizes(source: Any, *, is_file: bool) -> Iterator[int]:
    """Bytes that decompressing each batch and dictionary of an open Arrow file or stream gives.

    What is stored plainly does not count. Raises `OSError` for a file that is damaged.
    """
    import pyarrow as pa

    source.seek(_MAGIC_BYTES if is_file else 0)
    for message in pa.ipc.MessageReader.open_stream(source):
        if message.type in ("record batch", "dictionary"):
            yield _decoded_size(message.metadata.to_pybytes(), message.body)


def _decoded_size(metadata: bytes, body: Any) -> int:
    try:
        return sum(_buffer_sizes(metadata, body))
    except struct.error as error:
        raise OSError(f"a message that cannot be read: {error}") from error


def _buffer_sizes(metadata: bytes, body: Any) -> Iterator[int]:
    message = _read("<I", metadata, 0)
    kind = _read("<B", metadata, _field(metadata, message, _HEADER_TYPE) or 0)
    batch = _table(metadata, message, _HEADER)
    if kind == _DICTIONARY:
        batch = _table(metadata, batch, _DATA)
    if _field(metadata, batch, _COMPRESSION) is None:
        return
    buffers = _table(metadata, batch, _BUFFERS)
    for number in range(_read("<I", metadata, buffers)):
        offset, length = struct.unpack_from("<qq", metadata, buffers + 4 + 16 * number)
        yield max(_read("<q", body, offset), 0) if length >= 8 else 0


def _field(data: bytes, table: int, number: int) -> int | None:
    """The place of a field of a flatbuffer's table; None if the table leaves it out."""
    index = table - _read("<i", data, table)
    size = _read("<H", data, index)
    if 4 + 2 * number >= size:
        return None
    offset = _read("<H", data, index + 4 + 2 * number)
    return table + offset if offset else None


def _table(data: bytes, table: int, number: int) -> int:
    """The place of the table or vector that a field points to."""
    place = _field(data, table, number)
    if place is None:
        raise struct.error("a field is missing")
    return place + _read("<I", data, place)


def _read(layout: str, data: Any, place: int) -> int:
    if place < 0:
        raise struct.error("a place before the beginning")
    (value,) = struct.unpack_from(layout, data, place)
    return int(value)
