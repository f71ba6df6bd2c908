"""The raw store: ingested batches as immutable files, each named by the digest of its bytes."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from data_contracts.artifact import full_disk_as_stage_error, new_file, sha256_file
from data_contracts.errors import ArtifactError, UsageError
from tasks.feedback.containers import dump_row, read_lines, recognise_container
from tasks.feedback.senders import keep_senders

_CHUNK = 1 << 20
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(?::[\w.-]+)?")
_FILE_SUFFIX = re.compile(r"\.(jsonl?|ndjson|gz|zst|parquet|csv|txt)$")
_TEMPORARY = ".incoming-"


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch in the raw store. `digest` is the SHA-256 (hex) of its bytes; `new` is false if it was there before."""

    path: Path
    digest: str
    new: bool


def store_batch(path: Path | str, source: str, raw: Path, senders: Sequence[str | None] = ()) -> Batch:
    """Take a file or dataset into the raw store, as `raw/source/<digest>.<container>`.

    A file is copied byte for byte; a `datasets` folder (`save_to_disk`) or hub name (`owner/name`,
    `owner/name:split`) becomes JSON lines with sorted keys. The copy is read-only, and complete or absent.
    `senders` says who sent each row of a file of JSON lines; it is kept beside the batch, before the batch is there.

    Raises `UsageError` when the path is missing, unreadable, damaged, empty or no dataset, `StageError`
    when the disk is full, and `ArtifactError` when a batch of that digest is there with other bytes.
    """
    folder = raw / source
    location = Path(path)
    if location.is_dir():
        return _store(_dataset_chunks(_load_folder(location), location), folder, "jsonl")
    if _names_hub_dataset(str(path)):
        return _store(_dataset_chunks(_load_hub(str(path)), path), folder, "jsonl")
    container = recognise_container(location)
    rows = sum(1 for _ in read_lines(location))  # to its end: a batch that is kept forever must be whole
    if rows == 0:
        raise UsageError(f"{location}: expected at least one row, found none. Check that its export ended well.")
    if senders:
        keep_senders(folder, sha256_file(location), senders)
    return _store(_file_chunks(location), folder, container)


def _names_hub_dataset(name: str) -> bool:
    """Whether a name is `owner/dataset` rather than a file; in a folder that exists it is a file, if a missing one."""
    location = Path(name)
    local = location.exists() or location.parent.is_dir() or _FILE_SUFFIX.search(name)
    return not local and _HUB_NAME.fullmatch(name) is not None


def _store(chunks: Iterator[bytes], folder: Path, suffix: str) -> Batch:
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f"{_TEMPORARY}*"):
        leftover.unlink()
    with full_disk_as_stage_error(folder):
        handle, temporary = new_file(folder, _TEMPORARY)
        try:
            with os.fdopen(handle, "wb") as file:
                digest = _write_hashed(file, chunks)
            return _settle(temporary, folder / f"{digest[:16]}.{suffix}", digest)
        finally:
            temporary.unlink(missing_ok=True)


def _write_hashed(file: IO[bytes], chunks: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
        file.write(chunk)
    file.flush()
    os.fsync(file.fileno())
    return digest.hexdigest()


def _settle(temporary: Path, final: Path, digest: str) -> Batch:
    if final.exists():
        found = sha256_file(final)
        if found != digest:
            raise ArtifactError(
                f"{final}: expected the bytes with sha256 {digest}, found sha256 {found}. The raw store is append-only "
                f"and this batch was changed: restore it (`dvc checkout`) or remove it and ingest again."
            )
        return Batch(final, digest, new=False)
    temporary.chmod(temporary.stat().st_mode & 0o444)  # read-only, for those whom the umask lets read
    temporary.rename(final)
    return Batch(final, digest, new=True)


def _file_chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
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
