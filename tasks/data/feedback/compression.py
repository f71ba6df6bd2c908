"""Compressions undone as a stream: gzip, zstd, bzip2, xz, and a zip archive with one member, each told by its bytes.

What comes out is counted against `Limits.max_decoded_bytes`, chunk by chunk: a megabyte can hold many gigabytes.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Literal

from plumbline.data_contracts.errors import UnreadableFile, UsageError
from plumbline.data_contracts.extras import needs_extra

Compression = Literal["gz", "zst", "bz2", "xz", "zip"]

DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)
"""Errors of a file that is damaged, beside those of the disk."""

CHUNK = 1 << 20
"""Bytes read at a time."""

_ZSTD_CHUNK = 512  # bytes undone at a time: zstd turns 4 bytes into 128 KiB where it can
_XZ_MEMORY = 1 << 28  # bytes that an xz file may ask for
_MAGIC: tuple[tuple[bytes, Compression], ...] = (
    (b"\x1f\x8b", "gz"),
    (b"\x28\xb5\x2f\xfd", "zst"),
    (b"BZh", "bz2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"PK\x03\x04", "zip"),
)
_BZIP_BLOCKS = (b"1AY&SY", b"\x17rE8P\x90")  # a block, or the end of a file without one
_OTHER_ZIPS = (b"[Content_Types].xml", b"xl/", b".pkl", b".npy")  # office files, checkpoints, arrays


def compression_of(head: bytes) -> Compression | None:
    """The compression of a file by its first bytes; None if it has none that is undone here."""
    found = next((name for magic, name in _MAGIC if head.startswith(magic)), None)
    if found == "bz2" and not any(head[4:].startswith(block) for block in _BZIP_BLOCKS):
        return None
    return None if found == "zip" and any(mark in head for mark in _OTHER_ZIPS) else found


def undone(raw: IO[bytes], compression: Compression, shown: Path | str, most: int | None) -> Iterator[bytes]:
    """The content of a compressed file. Raises `UsageError` when it has more than `most` bytes, or `DAMAGE`."""
    total = 0
    for chunk in _UNDO[compression](raw, shown):
        total += len(chunk)
        if most is not None and total > most:
            raise too_large(shown, most)
        yield chunk


def too_large(shown: Path | str, most: int) -> UsageError:
    """The error for a file that holds more than params allow."""
    return UsageError(
        f"{shown}: expected at most {most:,} bytes once it is decompressed (feedback.max_decoded_bytes), found more. "
        f"Give it in parts, or raise feedback.max_decoded_bytes if you trust its origin."
    )


def _gzip_chunks(raw: IO[bytes], shown: Path | str) -> Iterator[bytes]:
    with gzip.open(raw, "rb") as unzipped:
        yield from iter(lambda: unzipped.read(CHUNK), b"")


def _bzip2_chunks(raw: IO[bytes], shown: Path | str) -> Iterator[bytes]:
    with bz2.open(raw, "rb") as unzipped:
        yield from iter(lambda: unzipped.read(CHUNK), b"")


def _xz_chunks(raw: IO[bytes], shown: Path | str) -> Iterator[bytes]:
    """Decompress stream by stream, with a bound on memory that `lzma.open` lacks."""
    data = raw.read(CHUNK)
    while data:
        stream = lzma.LZMADecompressor(memlimit=_XZ_MEMORY)
        while not stream.eof:
            yield stream.decompress(data, CHUNK)
            data = b"" if not stream.needs_input or stream.eof else raw.read(CHUNK)
            if not data and stream.needs_input and not stream.eof:
                raise EOFError("the last xz stream does not end")
        data = (stream.unused_data or raw.read(CHUNK)).lstrip(b"\0")


def _zip_chunks(raw: IO[bytes], shown: Path | str) -> Iterator[bytes]:
    with zipfile.ZipFile(raw) as archive:
        members = [each for each in archive.infolist() if not each.is_dir() and _is_member(each.filename)]
        if len(members) != 1:
            names = ", ".join(each.filename for each in members[:5]) or "none"
            raise UnreadableFile(
                f"{shown}: expected a zip archive with one file, found {len(members)}: {names}. Unpack it "
                f"(`unzip {Path(shown).name}`), and give the folder."
            )
        try:
            member = archive.open(members[0])
        except (RuntimeError, NotImplementedError) as error:  # with a password, or by another method
            raise OSError(str(error)) from error
        with member:
            yield from iter(lambda: member.read(CHUNK), b"")


def _is_member(name: str) -> bool:
    """False for what systems put beside the files of a person."""
    return not name.startswith("__MACOSX/") and not name.rpartition("/")[2].startswith(".")


def _zstd_chunks(raw: IO[bytes], shown: Path | str) -> Iterator[bytes]:
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


_UNDO: Mapping[Compression, Callable[[IO[bytes], Path | str], Iterator[bytes]]] = {
    "gz": _gzip_chunks,
    "zst": _zstd_chunks,
    "bz2": _bzip2_chunks,
    "xz": _xz_chunks,
    "zip": _zip_chunks,
}
