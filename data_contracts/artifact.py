"""Artifacts, which stages hand over: folders with a manifest that is written last.

Layout of an artifact folder:

1. any files and subfolders;
2. `manifest.json`: contract name and version, SHA-256 and size of each file, digests of the
   parents, and facts (counts, settings). No clock, host or absolute path, so that the same
   inputs give the same bytes.

`writing` builds the folder beside its final place and renames it when whole: a reader meets
the old artifact, none, or the new one, never a half. The digest of an artifact is the SHA-256
of its manifest, which pins every file in it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from plumbline.data_contracts.errors import ArtifactError, StageError

MANIFEST = "manifest.json"
INCOMING = ".incoming-"  # how the name of a file begins that is not whole yet
_CHUNK = 1 << 20
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no space, over quota, over the limit of a file's size


@dataclass(frozen=True, slots=True)
class Artifact:
    """A whole artifact on disk. `digest` is the SHA-256 (hex) of its manifest."""

    path: Path
    digest: str
    contract: str
    version: int
    parents: Mapping[str, str]
    facts: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]


@dataclass(slots=True)
class Draft:
    """An artifact being written: put files under `path`, facts into `facts`."""

    path: Path
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Problem:
    """One way in which a file differs from its manifest."""

    path: str
    expected: str
    found: str


def sha256_file(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write JSON (sorted keys, indented, UTF-8, trailing newline) through a temporary name and a rename."""
    write_bytes(path, orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2) + b"\n")


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file atomically: temporary name in the same folder, fsync, rename."""
    handle, scratch = new_file(path.parent, f".{path.name}.")
    try:
        write_synced(handle, data)
        os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def write_read_only(path: Path, data: bytes) -> None:
    """Write a file of an append-only folder, whole or not at all, that nobody is to change."""
    handle, scratch = new_file(path.parent, INCOMING)
    write_synced(handle, data)
    scratch.chmod(scratch.stat().st_mode & 0o444)
    scratch.rename(path)


def write_synced(handle: int, data: bytes) -> None:
    """Write a new file to its descriptor, down to the disk, and close it."""
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def new_file(folder: Path, prefix: str) -> tuple[int, Path]:
    """Open a new file of a name that nobody has, with the mode that the umask leaves. `tempfile` ignores the umask."""
    path = folder / f"{prefix}{secrets.token_hex(8)}"
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), path


def warnings_of(artifacts: Mapping[str, Artifact]) -> list[dict[str, str]]:
    """Warnings of the stages, in their order, each with the stage's name: the fact `warnings` of their artifacts."""
    return [
        {"stage": name, "text": str(text)}
        for name, artifact in artifacts.items()
        for text in artifact.facts.get("warnings") or ()
    ]


@contextmanager
def full_disk_as_stage_error(path: Path) -> Iterator[None]:
    """Turn the operating system's "no space left" inside the block into a `StageError` that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        raise StageError(
            f"{path}: could not be written: {error.strerror}. Nothing half-written was left and what was there "
            f"before is untouched. Free disk space or raise the quota, then run the same command again."
        ) from error


@contextmanager
def writing(path: Path, *, contract: str, version: int, parents: Mapping[str, str] | None = None) -> Iterator[Draft]:
    """Write an artifact atomically.

    Yields a `Draft` whose folder becomes `path` when the block ends well. On any exception the
    draft is removed and an earlier artifact at `path` stays untouched. Raises `StageError` when the
    disk is full.
    """
    with full_disk_as_stage_error(path), _renaming(path, contract, version, parents or {}) as draft:
        yield draft


@contextmanager
def _renaming(path: Path, contract: str, version: int, parents: Mapping[str, str]) -> Iterator[Draft]:
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep_drafts(path)
    folder = path.with_name(f".{path.name}.draft-{secrets.token_hex(8)}")
    folder.mkdir()
    try:
        draft = Draft(folder)
        yield draft
        write_json(
            folder / MANIFEST,
            {
                "contract": contract,
                "version": version,
                "files": _hash_files(folder),
                "parents": dict(parents),
                "facts": draft.facts,
            },
        )
        if path.exists():
            retired = folder.with_name(folder.name.replace(".draft-", ".retired-"))
            path.rename(retired)
            folder.rename(path)
            shutil.rmtree(retired)
        else:
            folder.rename(path)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        _restore_retired(path)
        raise


def read_artifact(path: Path, *, contract: str | None = None) -> Artifact:
    """Read an artifact's manifest without re-hashing its files.

    Raises `ArtifactError` when the folder or manifest is missing, or the contract is another.
    """
    try:
        raw = (path / MANIFEST).read_bytes()
        manifest = orjson.loads(raw)
    except (OSError, orjson.JSONDecodeError) as error:
        raise ArtifactError(
            f"{path}: expected an artifact with a readable {MANIFEST}, found {error}. "
            f"Run the stage that writes it (`plumbline retrain`) or restore it (`dvc checkout {path}`)."
        ) from error
    if contract is not None and manifest["contract"] != contract:
        raise ArtifactError(f"{path}: expected contract {contract!r}, found {manifest['contract']!r}.")
    return Artifact(
        path=path,
        digest=hashlib.sha256(raw).hexdigest(),
        contract=manifest["contract"],
        version=manifest["version"],
        parents=manifest["parents"],
        facts=manifest["facts"],
        files=manifest["files"],
    )


def verify_artifact(path: Path) -> list[Problem]:
    """Re-hash every file of an artifact against its manifest; an empty list means whole."""
    files = read_artifact(path).files
    found = {name: path / name for name in _list_files(path)}
    problems = [Problem(name, "a file of the manifest", "no such file") for name in files if name not in found]
    problems += [Problem(name, "no such file", "an extra file") for name in found if name not in files]
    for name in sorted(set(files) & set(found)):
        digest = sha256_file(found[name])
        if digest != files[name]["sha256"]:
            problems.append(Problem(name, f"sha256 {files[name]['sha256']}", f"sha256 {digest}"))
    return problems


def _list_files(folder: Path) -> list[str]:
    found = (item for item in sorted(folder.rglob("*")) if item.is_file())
    return [item.relative_to(folder).as_posix() for item in found if item != folder / MANIFEST]


def _hash_files(folder: Path) -> dict[str, dict[str, Any]]:
    hashes = {}
    for name in _list_files(folder):
        file = folder / name
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
        hashes[name] = {"sha256": sha256_file(file), "bytes": file.stat().st_size}
    return hashes


def _restore_retired(path: Path) -> None:
    """Put a retired artifact back if the new one never arrived, else remove it."""
    for retired in path.parent.glob(f".{path.name}.retired-*"):
        if not path.exists():
            retired.rename(path)
        else:
            shutil.rmtree(retired)


def _sweep_drafts(path: Path) -> None:
    """Remove what a killed writer left."""
    _restore_retired(path)
    for draft in path.parent.glob(f".{path.name}.draft-*"):
        shutil.rmtree(draft)
