"""Every place of a workspace that may hold erased texts, and the removal from it.

| place | what is done |
|---|---|
| DVC's cache and remote | the object is deleted; listings of folders, which hold names and hashes, stay |
| an output of a stage | the folder is removed; the next run makes it anew |
| `.plumbline/logs` | the lines are removed |
| caches and work folders in `.plumbline` | the file or its folder is removed; it is made anew |
| databases in `.plumbline` | their owners delete rows; the file is compacted |
| what MLflow keeps | it is signed and stays; it is named |
| git's history, files of people's own | they are named: nobody else may change them |
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from plumbline.data_contracts.artifact import write_bytes
from plumbline.data_contracts.errors import UsageError
from plumbline.tasks.data.feedback.columnar import ARROW_FILE, PARQUET
from plumbline.tasks.data.feedback.compression import compression_of
from plumbline.tasks.data.feedback.containers import read_lines
from plumbline.tasks.data.ingest_feedback import ERASURE
from plumbline.tasks.data.validate_feedback import RAW
from plumbline.tasks.operations.erasure.needles import Searcher
from plumbline.tasks.params.feedback_limits import LIMITS
from plumbline.tasks.storage.database.location import REMOTE, STATE
from plumbline.tasks.storage.versioning.git import read_git_objects
from plumbline.tasks.storage.versioning.lock import read_lock
from plumbline.tasks.storage.versioning.objects import ObjectPlace, ObjectStore

_MADE_ANEW = ("work", "dry-run", "lineage", "versions", "reproduce", "freshness", "monitor", "self-play", "promotion")
_OF_MLFLOW = ("mlartifacts", "mlflow.db")
_HEAD = 4096


@dataclass(slots=True)
class Hits:
    """The places in which a search found something, each by its path in the workspace.

    `objects`: hashes by the store that has them. `kept`: signed files of MLflow. `own`: files only people can change.
    """

    objects: dict[str, list[str]] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    caches: list[str] = field(default_factory=list)
    logs: list[str] = field(default_factory=list)
    databases: list[str] = field(default_factory=list)
    raw: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    own: list[str] = field(default_factory=list)

    @property
    def left(self) -> list[str]:
        """All but what MLflow keeps, as paths and hashes."""
        objects = [f"{where}: {digest}" for where, digests in self.objects.items() for digest in digests]
        return [*objects, *self.outputs, *self.caches, *self.logs, *self.databases, *self.raw, *self.own]


def search(root: Path, searcher: Searcher) -> Hits:
    """Search every file of a workspace, its git history, DVC's cache and its remote.

    Raises `VersioningError` if the remote cannot be read.
    """
    hits = Hits()
    for place in ObjectStore(root).places:
        found = [
            digest for digest in place.digests() if not digest.endswith(".dir") and _in_object(place, digest, searcher)
        ]
        hits.objects |= {place.where: found} if found else {}
    outputs = {path for stage in read_lock(root).values() for path in stage["outs"]}
    for path in _files(root):
        if _in_file(path, searcher):
            _sort(path.relative_to(root).as_posix(), outputs, hits)
    if searcher.found_in(read_git_objects(root)):
        hits.own.append("git history")
    return hits


def remove_objects(root: Path, digests: set[str]) -> None:
    """Delete objects from cache and remote, the cache first. Raises `VersioningError` if the remote fails."""
    for place in ObjectStore(root).places:
        for digest in sorted(digests):
            place.remove(digest)


def remove_files(root: Path, hits: Hits, searcher: Searcher) -> None:
    """Remove outputs and caches, and lines of logs."""
    for name in (*hits.outputs, *hits.caches):
        if (root / name).is_dir():
            shutil.rmtree(root / name)
        else:
            (root / name).unlink(missing_ok=True)
    for name in filter(lambda name: (root / name).exists(), hits.logs):
        lines = (root / name).read_bytes().splitlines(keepends=True)
        write_bytes(root / name, b"".join(line for line in lines if not searcher.found_in(line)))


def _files(root: Path) -> Iterator[Path]:
    """Files of a workspace that are no objects: those are searched by their stores."""
    apart = {root / ".git", root / ".dvc" / "cache" / "files", root / REMOTE, root / ERASURE}
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if Path(folder, name) not in apart)
        for name in sorted(names):
            path = Path(folder, name)
            if path not in apart and path.is_file() and not path.is_symlink():
                yield path


def _sort(name: str, outputs: set[str], hits: Hits) -> None:
    parts = name.split("/")
    output = next((path for path in outputs if name.startswith(f"{path}/")), None)
    inside = parts[1] if parts[0] == STATE.name and len(parts) > 1 else ""
    if output is not None:
        hits.outputs = sorted({*hits.outputs, output})
    elif name.startswith(f"{RAW}/"):
        hits.raw.append(name)
    elif inside.startswith(_OF_MLFLOW):
        hits.kept.append(name)
    elif inside == "logs":
        hits.logs.append(name)
    elif inside in _MADE_ANEW:
        hits.caches = sorted({*hits.caches, "/".join(parts[:3])})
    elif inside and ".db" in parts[-1]:
        hits.databases.append(name)
    else:
        hits.own.append(name)


def _in_file(path: Path, searcher: Searcher) -> bool:
    with path.open("rb") as file:
        head = file.read(_HEAD)
        file.seek(0)
        return searcher.occurs_in(file) or (_is_packed(head) and _in_rows(path, searcher))


def _in_object(place: ObjectPlace, digest: str, searcher: Searcher) -> bool:
    stream = place.open(digest)
    if stream is None:
        return False
    with stream:
        head = stream.read(_HEAD)
        if not _is_packed(head):
            return searcher.occurs_in(_Joined(head, stream))
        with tempfile.NamedTemporaryFile(prefix="plumbline-search-") as file:
            file.write(head)
            shutil.copyfileobj(stream, file)
            file.flush()
            return _in_file(Path(file.name), searcher)


class _Joined(io.BytesIO):
    """What was read of a stream already, then the rest of it."""

    def __init__(self, head: bytes, rest: object) -> None:
        super().__init__(head)
        self._rest = rest

    def read(self, size: int | None = -1) -> bytes:
        data: bytes = super().read(size) or self._rest.read(size)  # type: ignore[attr-defined]
        return data


def _is_packed(head: bytes) -> bool:
    """True for bytes in which a text does not lie as it is: compressed, in columns, or UTF-16."""
    return head.startswith((PARQUET, ARROW_FILE, b"\xff\xff\xff\xff", b"\xff\xfe", b"\xfe\xff")) or (
        compression_of(head) is not None
    )


def _in_rows(path: Path, searcher: Searcher) -> bool:
    """True if a file of feedback holds a needle in its rows; false for any other packed file, as a plot."""
    try:
        return bool(searcher.shared_with(text for _, text in read_lines(path, path.name, LIMITS.of_stored())))
    except UsageError:
        return False
