"""The raw store: ingested batches as immutable files, each named by the digest of its bytes."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

from plumbline.data_contracts.artifact import INCOMING, full_disk_as_stage_error, new_file, sha256_file
from plumbline.data_contracts.errors import ArtifactError, UsageError
from plumbline.tasks.data.feedback.containers import no_such_file, read_lines, recognise_container, unreadable
from plumbline.tasks.data.feedback.detection import HEAD, Detection, detect
from plumbline.tasks.data.feedback.json_values import dump_row
from plumbline.tasks.data.feedback.mapping import why_unmapped
from plumbline.tasks.data.feedback.places import FILE_SUFFIX
from plumbline.tasks.data.feedback.readings import keep_map, map_of
from plumbline.tasks.data.feedback.rows import parsed
from plumbline.tasks.data.feedback.senders import keep_senders
from plumbline.tasks.params.feedback_limits import LIMITS, Limits

_CHUNK = 1 << 20
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(?::[\w.-]+)?")


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch in the raw store.

    `digest` is the SHA-256 (hex) of its bytes; `new` is false if it was there before. `given` is the place that it came
    from. `found` is what its head says that it is; None if that is not clear, and a person named the source.
    """

    path: Path
    digest: str
    new: bool
    rows: int
    source: str
    given: str
    found: Detection | None = None


@dataclass(frozen=True, slots=True)
class BatchChoices:
    """Choices for taking a batch in, beside its bytes.

    `columns` is a person's map, kept beside the batch; `senders` say who sent each row, and are kept there too.
    `store`: another folder that may hold the batch and its map already. `fallback`: the source of a file that does not
    say its own; None: such a file is refused.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    senders: Sequence[str | None] = ()
    limits: Limits = LIMITS
    store: Path | None = None
    fallback: str | None = None


_NO_CHOICES = BatchChoices()


def store_batch(
    path: Path | str,
    source: str | None,
    raw: Path,
    *,
    intake: BatchChoices = BatchChoices(),
) -> Batch:
    """Take a file or dataset into the raw store, as `raw/source/<digest>.<container>`.

    Without a source the file says it. A file is copied byte for byte, and a pipe or socket is read once, to its end; a
    `datasets` folder (`save_to_disk`) or hub name (`owner/name`, `owner/name:split`) becomes JSON lines with sorted
    keys. What was copied is checked, not the original, which may change meanwhile or be readable only once. The copy is
    read-only, and complete or absent.

    Raises `UsageError` when the path is missing, a device, unreadable, damaged, empty or no dataset, or does not say
    what it is; `StageError` when the disk is full, and `ArtifactError` when a batch of that digest is there with other
    bytes.
    """
    location = Path(path)
    if location.is_dir():
        return _store(_dataset_chunks(_load_folder(location), location), raw, source, location, intake)
    if _names_hub_dataset(str(path)):
        return _store(_dataset_chunks(_load_hub(str(path)), path), raw, source, path, intake)
    return _store(_file_chunks(location), raw, source, location, intake)


def _names_hub_dataset(name: str) -> bool:
    """True if a name is `owner/dataset` rather than a file; in a folder that exists it is a file, if a missing one."""
    location = Path(name)
    local = location.exists() or location.parent.is_dir() or FILE_SUFFIX.search(name)
    return not local and _HUB_NAME.fullmatch(name) is not None


def _store(chunks: Iterator[bytes], raw: Path, source: str | None, shown: Path | str, intake: BatchChoices) -> Batch:
    """Copy, check the copy, settle it. A refused one leaves no folder behind that was not there before."""
    folder = raw / source if source else raw
    made = [each for each in (folder, folder.parent) if not each.exists()]
    with full_disk_as_stage_error(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f"{INCOMING}*"):
        leftover.unlink()
    try:
        with full_disk_as_stage_error(folder):
            return _settled(chunks, raw, source, folder, shown, intake)
    except UsageError:
        for each in made:
            with suppress(OSError):  # another process put something into it
                each.rmdir()
        raise


def _settled(
    chunks: Iterator[bytes], raw: Path, source: str | None, folder: Path, shown: Path | str, intake: BatchChoices
) -> Batch:
    handle, temporary = new_file(folder, INCOMING)
    try:
        with os.fdopen(handle, "wb") as file:
            digest = _write_hashed(file, chunks)
        container, rows = _check(temporary, shown, intake.limits)
        columns = intake.columns or map_of(digest, raw, intake.store)
        found = _detected(temporary, shown, source or intake.fallback, columns, intake.limits)
        named = source or (found.source if found else intake.fallback)
        assert named is not None, "a file without a source is detected or refused"
        (raw / named).mkdir(parents=True, exist_ok=True)
        if intake.senders:
            keep_senders(raw / named, digest, intake.senders)
        keep_map(raw / named, digest, columns, beside=intake.store / named if intake.store else None)
        final = raw / named / f"{digest[:16]}.{container}"
        return Batch(final, digest, _settle(temporary, final, digest), rows, named, str(shown), found)
    finally:
        temporary.unlink(missing_ok=True)


def _detected(
    copy: Path, shown: Path | str, source: str | None, columns: Mapping[str, str], limits: Limits
) -> Detection | None:
    """What a copy is. Raises `UsageError` if it does not say, and there is no source; or if its map fits no row."""
    head = list(islice(read_lines(copy, shown, limits), HEAD))
    rows = parsed(head, columns, limits)
    if columns and not rows and (fit := parsed(head, {}, limits)):
        raise UsageError(f"{shown}: the map fits none of the first {len(head)} rows: {why_unmapped(fit[0], columns)}")
    try:
        return detect(rows, str(shown), len(head))
    except UsageError:
        if source is None:
            raise
        return None


def _check(copy: Path, shown: Path | str, limits: Limits) -> tuple[str, int]:
    """Container and rows of a copy, read to its end: a batch that is kept forever must be whole."""
    container = recognise_container(copy, shown)
    rows = sum(1 for _ in read_lines(copy, shown, limits))
    if rows == 0:
        raise UsageError(f"{shown}: expected at least one row, found none. Check that its export ended well.")
    return container, rows


def _write_hashed(file: IO[bytes], chunks: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
        file.write(chunk)
    file.flush()
    os.fsync(file.fileno())
    return digest.hexdigest()


def _settle(temporary: Path, final: Path, digest: str) -> bool:
    """Give a copy its name, unless it is there; true if it was not."""
    if final.exists():
        if sha256_file(final) != digest:
            raise changed_batch(final, digest)
        return False
    temporary.chmod(temporary.stat().st_mode & 0o444)  # read-only, for those whom the umask lets read
    temporary.rename(final)
    _sync(folder=final.parent)
    return True


def changed_batch(path: Path, digest: str) -> ArtifactError:
    """The error for a batch of the append-only store that somebody changed."""
    return ArtifactError(
        f"{path}: expected the bytes with sha256 {digest}, found sha256 {sha256_file(path)}. The raw store is "
        f"append-only and this batch was changed: `plumbline doctor --fix` puts the recorded bytes back, and sets the "
        f"changed ones aside."
    )


def _sync(folder: Path) -> None:
    """Make a name durable: what is accepted outlives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _file_chunks(path: Path) -> Iterator[bytes]:
    """The bytes of a file, pipe or socket, opened once. A terminal or a device has no end, or nothing to keep."""
    try:
        file = path.open("rb")
    except FileNotFoundError as error:
        raise no_such_file(path) from error
    except OSError as error:
        raise unreadable(path, error) from error
    kind = os.fstat(file.fileno()).st_mode
    if stat.S_ISCHR(kind) or stat.S_ISBLK(kind):
        file.close()
        raise UsageError(f"{path}: expected a file or a pipe, found a terminal or a device. Give a file.")
    return _chunks(file)


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _dataset_chunks(dataset: Any, name: Path | str) -> Iterator[bytes]:
    if len(dataset) == 0:
        raise UsageError(f"{name}: expected at least one row, found an empty dataset.")
    return (dump_row(row) + b"\n" for row in dataset)


def _load_folder(folder: Path) -> Any:
    """The one split of a dataset that `save_to_disk` wrote."""
    if not ((folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()):
        raise UsageError(
            f"{folder}: expected a file, or a folder that `datasets` wrote (save_to_disk: state.json or "
            f"dataset_dict.json), found a folder without either. Give its files one by one."
        )
    from datasets import DatasetDict, load_from_disk

    try:
        dataset = load_from_disk(str(folder))
    except Exception as error:  # datasets lets errors of Arrow, JSON and its own through
        raise UsageError(
            f"{folder}: expected a readable dataset with a row or more, found: {_first_line(error)}. Save it again."
        ) from error
    if not isinstance(dataset, DatasetDict):
        return dataset
    if len(dataset) == 1:
        return next(iter(dataset.values()))
    splits = ", ".join(str(folder / split) for split in dataset)
    raise UsageError(f"{folder}: expected one split, found {len(dataset)}. Give one of: {splits}.")


def _load_hub(name: str) -> Any:
    """A split of a dataset on the Hugging Face hub, `train` unless the name says `owner/name:split`."""
    from datasets import load_dataset

    repository, _, split = name.partition(":")
    try:
        return load_dataset(repository, split=split or "train")
    except Exception as error:  # the network, the hub, the cache and the dataset each fail in a way of their own
        raise UsageError(
            f"{name}: no such file, and as a dataset of the Hugging Face hub it cannot be loaded: "
            f"{type(error).__name__}: {_first_line(error)}. Check the path; offline, give a file or a folder "
            f"that `save_to_disk` wrote; for another split than train write {repository}:SPLIT."
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
