"""The containers in which rows come, told by their bytes and never by their names.

A file is text (JSON lines, a JSON document, CSV or TSV), Parquet, Arrow or Feather, and any of them may be compressed
(gzip, zstd, bzip2, xz, a zip archive with one member). Text is UTF-8, or UTF-16 with its mark.

Whatever the container, a reader meets one JSON text per row, with its 1-based number: the line on which it begins in
JSON lines and CSV, the row in all others. Blank lines are skipped, and counted as lines. Memory and time are
bounded by `Limits`: a row over the limit comes cut to one byte more than it, which is how its reader knows.
"""

from __future__ import annotations

import codecs
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from plumbline.data_contracts.errors import UnreadableFile, UsageError
from plumbline.tasks.data.feedback.columnar import ARROW_FILE, ARROW_STREAM, PARQUET, arrow_rows, parquet_rows
from plumbline.tasks.data.feedback.compression import CHUNK, DAMAGE, Compression, compression_of, undone
from plumbline.tasks.data.feedback.delimited import delimited_rows
from plumbline.tasks.data.feedback.foreign import EXPECTED, Form, refuse_foreign_bytes, text_form
from plumbline.tasks.data.feedback.json_documents import split_document
from plumbline.tasks.params.feedback_limits import LIMITS, Limits

Chunks = Iterator[bytes]

_BOM = codecs.BOM_UTF8
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_HEAD = 4096  # bytes looked at to tell text from other things
_TEXT_HEAD = 1 << 18  # bytes of text looked at to tell JSON lines from other text
_LINES = Form("jsonl")


def recognise_container(path: Path, shown: Path | str | None = None) -> str:
    """A file's container by its bytes, as the suffix of its name: `jsonl`, `csv.gz`; messages call it `shown`.

    Raises `UsageError` for a file that cannot be read, and `UnreadableFile` for one that is empty, or is neither text
    nor a known container.
    """
    shown = path if shown is None else shown
    compression = _look(path, shown)
    with _damage_named(shown, _suffix(_LINES, compression)):
        chunks = _chunks(path, shown, compression, Limits(max_decoded_bytes=None))
        head, whole = _first(chunks)
        return _suffix(_form(head, whole, shown, compression), compression)


def read_lines(path: Path, shown: Path | str | None = None, limits: Limits = LIMITS) -> Iterator[tuple[int, bytes]]:
    """Each row of a file as its 1-based number and its JSON text, streamed.

    A row longer than `limits.max_row_bytes` comes cut to one byte more. Raises `UsageError` when the file cannot be
    read or is larger than `limits` allow, and `UnreadableFile` when it is of no known container or is damaged.
    """
    shown = path if shown is None else shown
    compression = _look(path, shown)
    form = _LINES
    try:
        chunks = _chunks(path, shown, compression, limits)
        head, whole = _first(chunks)
        form = _form(head, whole, shown, compression)
        yield from _rows(form, path, shown, compression, chain([head], chunks), limits)
    except (*DAMAGE, UnicodeError) as error:
        raise _damaged(error, shown, _suffix(form, compression)) from error


def no_such_file(path: Path | str) -> UsageError:
    """The error for a path if nothing is."""
    return UsageError(f"{path}: no such file. Check the path; it is relative to the current folder.")


def unreadable(path: Path | str, error: OSError) -> UsageError:
    """The error for a file that the system does not let us read."""
    return UsageError(f"{path}: expected a readable file, found: {error.strerror}.")


def _look(path: Path, shown: Path | str) -> Compression | None:
    """The compression of a file. Raises `UsageError` if it cannot be read, and `UnreadableFile` if it is empty."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except FileNotFoundError as error:
        raise no_such_file(path) from error
    except OSError as error:
        raise unreadable(path, error) from error
    if not head:
        raise UnreadableFile(f"{shown}: expected {EXPECTED}, found an empty file. Check that its export ended well.")
    return compression_of(head)


def _form(head: bytes, whole: bool, shown: Path | str, compression: Compression | None) -> Form:
    """The form of what a file holds once it is decompressed. Raises `UnreadableFile` for what is not feedback."""
    if head.startswith(PARQUET):
        return Form("parquet")
    if head.startswith((ARROW_FILE, ARROW_STREAM)):
        return Form("arrow")
    if _is_utf16(head):
        cut = head[: len(head) - len(head) % 2]
        return text_form(cut.decode("utf-16", errors="replace").encode("utf-8", "replace"), shown, whole=whole)
    refuse_foreign_bytes(head[:_HEAD], shown, inside=_suffix(_LINES, compression) if compression else None)
    return text_form(head.removeprefix(_BOM), shown, whole=whole)


def _rows(
    form: Form, path: Path, shown: Path | str, compression: Compression | None, chunks: Chunks, limits: Limits
) -> Iterator[tuple[int, bytes]]:
    row, most = limits.max_row_bytes, limits.max_decoded_bytes
    if form.name in ("parquet", "arrow"):
        read = parquet_rows if form.name == "parquet" else arrow_rows
        with _on_disk(path, compression, chunks) as file:
            yield from read(file, shown, row, most)
        return
    text = _as_utf8(chunks)
    if form.layout is not None:
        yield from enumerate(split_document(text, form.layout, row), 1)
    elif form.delimiter is not None:
        yield from delimited_rows(_split_lines(text, row), form.delimiter, row, shown)
    else:
        yield from _json_lines(text, row)


def _json_lines(chunks: Chunks, most: int) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank; a byte order mark may begin any, where files were put one after the other."""
    for number, line in enumerate(_split_lines(chunks, most), 1):
        text = line.removeprefix(_BOM)
        if len(text) > most or (text := text.strip(b" \t\r\n")):
            yield number, text


def _first(chunks: Chunks) -> tuple[bytes, bool]:
    """The beginning of a file's content, and whether that is all of it."""
    parts, size = [], 0
    for chunk in chunks:
        parts.append(chunk)
        size += len(chunk)
        if size >= _TEXT_HEAD:
            return b"".join(parts), False
    return b"".join(parts), True


def _split_lines(chunks: Chunks, most: int | None = None) -> Iterator[bytes]:
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


def _as_utf8(chunks: Chunks) -> Chunks:
    """UTF-16 as UTF-8, anything else as it is. A half of a surrogate pair becomes bytes that no row may have."""
    first = next(chunks, b"")
    if not _is_utf16(first):
        yield from chain([first], chunks)
        return
    decoder = codecs.getincrementaldecoder("utf-16")("surrogatepass")
    for chunk in chain([first], chunks):
        yield decoder.decode(chunk).replace("\ufeff", "").encode("utf-8", "surrogatepass")
    yield decoder.decode(b"", final=True).encode("utf-8", "surrogatepass")


def _is_utf16(head: bytes) -> bool:
    return head.startswith(_UTF16) and not head.startswith(codecs.BOM_UTF32_LE)


def _chunks(path: Path, shown: Path | str, compression: Compression | None, limits: Limits) -> Chunks:
    with path.open("rb") as raw:
        if compression is None:
            yield from iter(lambda: raw.read(CHUNK), b"")
        else:
            yield from undone(raw, compression, shown, limits.max_decoded_bytes)


@contextmanager
def _on_disk(path: Path, compression: Compression | None, chunks: Chunks) -> Iterator[Path]:
    """The file itself, or its content in a temporary file where it was compressed as a whole."""
    if compression is None:
        yield path
        return
    with tempfile.NamedTemporaryFile(prefix="plumbline-undone-") as file:
        for chunk in chunks:
            file.write(chunk)
        file.flush()
        yield Path(file.name)


@contextmanager
def _damage_named(shown: Path | str, container: str) -> Iterator[None]:
    try:
        yield
    except (*DAMAGE, UnicodeError) as error:
        raise _damaged(error, shown, container) from error


def _damaged(error: Exception, shown: Path | str, container: str) -> UsageError:
    if isinstance(error, OSError) and error.errno is not None:  # the disk's fault, not the file's
        return unreadable(shown, error)
    return UnreadableFile(
        f"{shown}: expected {container} to be readable to its end, found: {error}. "
        f"The file is damaged or was cut off: copy or export it again."
    )


def _suffix(form: Form, compression: Compression | None) -> str:
    return f"{form.name}.{compression}" if compression else form.name
