"""The objects behind DVC hashes: every copy in cache and remote, re-hashed from its bytes.

DVC trusts a protected cache file and remembers hashes by time stamp; an audit may not. Here each
copy is read again. A hash is an md5, of a file's bytes or, ending in ".dir", of the JSON listing of
a folder: [{"md5", "relpath"}, ...].
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Protocol

import orjson

from plumbline.data_contracts.errors import VersioningError
from plumbline.data_contracts.verification import HashCheck
from plumbline.tasks.storage.database.location import REMOTE, local_path
from plumbline.tasks.storage.versioning.listings import is_digest, require_digest, require_inner
from plumbline.tasks.storage.versioning.lock import current_hashes
from plumbline.tasks.storage.versioning.remote import default_remote, read_config
from plumbline.tasks.storage.versioning.silence import silence
from plumbline.tasks.storage.versioning.tombstones import load_tombstones

_CHUNK = 1 << 20
_DIR = ".dir"
_LAYOUT = Path("files") / "md5"
_OTHER_LAYOUTS = {"worktree", "version_aware"}  # DVC's own settings: such a remote has files under their names


class ObjectPlace(Protocol):
    """One store of objects by hash."""

    @property
    def where(self) -> str:
        """Its name in reports."""

    def open(self, digest: str) -> IO[bytes] | None:
        """The stored bytes, or None if there is no such object."""

    def digests(self) -> list[str]:
        """The hash of every object in it, sorted."""

    def remove(self, digest: str) -> None:
        """Delete an object for good. One that is not there is removed already."""


@dataclass(frozen=True, slots=True)
class _Objects:
    """Objects in a folder of this machine, as DVC lays them out: its cache, or a remote that is a folder."""

    folder: Path
    where: str = "cache"

    def path(self, digest: str) -> Path:
        require_digest(digest)
        return self.folder / digest[:2] / digest[2:]

    def open(self, digest: str) -> IO[bytes] | None:
        with suppress(FileNotFoundError):
            return self.path(digest).open("rb")
        return None

    def digests(self) -> list[str]:
        found = (path.parent.name + path.name for path in self.folder.glob("[0-9a-f][0-9a-f]/*") if path.is_file())
        return sorted(digest for digest in found if is_digest(digest))

    def remove(self, digest: str) -> None:
        self.path(digest).unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class _Remote:
    """DVC's object database over any file system."""

    odb: Any
    where: str = "remote"

    def open(self, digest: str) -> IO[bytes] | None:
        require_digest(digest)
        with suppress(FileNotFoundError):
            stream: IO[bytes] = self.odb.fs.open(self.odb.oid_to_path(digest), "rb")
            return stream
        return None

    def digests(self) -> list[str]:
        return sorted(str(digest) for digest in self.odb.all())

    def remove(self, digest: str) -> None:
        require_digest(digest)
        with suppress(FileNotFoundError):
            self.odb.fs.remove(self.odb.oid_to_path(digest))


class ObjectStore:
    """Cache and default remote of one workspace, to read; an erasure removes objects by `places`."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

    @property
    def places(self) -> Iterator[ObjectPlace]:
        """The cache, then the remote if there is one. Raises `VersioningError` if that cannot be opened."""
        yield self._cache
        if self._remote[0] is not None:
            yield self._remote[0]

    @cached_property
    def erased(self) -> dict[str, str]:
        """Hashes of objects that an erasure deleted, each with the erasure in words."""
        return {digest: each.text for each in load_tombstones(self.root) for digest in each.objects}

    @property
    def remote_url(self) -> str | None:
        """The URL of the default remote, as DVC's configuration has it, or None without one."""
        return self._remote[1]

    @property
    def shared_remote(self) -> str | None:
        """The URL of the default remote where it is no folder of this workspace's own, else None."""
        url = self.remote_url
        own = url is not None and Path(url) == self.root / REMOTE
        return None if own else url

    @cached_property
    def _cache(self) -> _Objects:
        return _find_cache(self.root)

    @cached_property
    def _remote(self) -> tuple[ObjectPlace | None, str | None]:
        """The remote and its URL, opened by the first question that the cache does not answer: it takes long."""
        return _open_default_remote(self.root)

    def check(self, digest: str, name: str, kind: str) -> list[HashCheck]:
        """Re-hash every copy of one object; one failed check if there is none at all."""
        checks = []
        for place in self.places:
            stream = place.open(digest)
            if stream is not None:
                with stream:
                    checks.append(HashCheck(name, kind, _bare(digest), place.where, _md5(stream)))
        return checks or [HashCheck(name, kind, _bare(digest), "cache and remote", None)]

    def check_path(self, digest: str, name: str, kind: str) -> list[HashCheck]:
        """Re-hash a file, or a folder's listing and each file in it, in every place that has it."""
        if not digest.endswith(_DIR):
            return self.check(digest, name, kind)
        checks = self.check(digest, f"{name}/", "listing")
        if any(check.ok for check in checks):
            for relative, file in self.listing(digest).items():
                checks += self.check(file, f"{name}/{relative}", kind)
        return checks

    def check_workspace(self, digest: str, name: str, kind: str) -> list[HashCheck]:
        """Re-hash the workspace's copy of a path, if the workspace still claims to hold this version of it.

        Nothing can be compared where no copy of a folder's listing is intact: `check_path` reports that.
        """
        if current_hashes(self.root).get(name) != digest or not (self.root / name).exists():
            return []
        if digest.endswith(_DIR) and not any(check.ok for check in self.check(digest, name, kind)):
            return []
        return check_tree(self.root / name, self.files(digest), name, kind, "workspace")

    def listing(self, digest: str) -> dict[str, str]:
        """Files of a folder: relative path -> md5.

        Raises `VersioningError` when no intact copy exists, or it names a file outside of the folder.
        """
        entries = orjson.loads(self.read(digest))
        require_inner((entry["relpath"] for entry in entries), digest)
        return {entry["relpath"]: entry["md5"] for entry in sorted(entries, key=lambda entry: entry["relpath"])}

    def files(self, digest: str) -> dict[str, str]:
        """As `listing`; a single file is named "."."""
        return self.listing(digest) if digest.endswith(_DIR) else {".": digest}

    def read(self, digest: str) -> bytes:
        """Bytes of an intact copy. Raises `VersioningError` when there is none."""
        for place in self.places:
            stream = place.open(digest)
            if stream is not None:
                with stream:
                    data = stream.read()
                if hashlib.md5(data, usedforsecurity=False).hexdigest() == _bare(digest):
                    return data
        raise self._lost(digest)

    @property
    def cache_folder(self) -> Path:
        """The folder of the cache's objects, in which each lies under the first two digits of its hash."""
        return self._cache.folder

    def cache_path(self, digest: str) -> Path:
        """The path at which the cache keeps, or would keep, an object. Never write through it to change one."""
        return self._cache.path(digest)

    @contextmanager
    def local_files(self, digest: str, names: Collection[str]) -> Iterator[dict[str, Path]]:
        """Readable files of a folder, those of `names` that it has: in the cache, or fetched for the while.

        Without those that were erased.
        """
        with tempfile.TemporaryDirectory() as scratch:
            files = {}
            for name, file in self.listing(digest).items():
                if name in names and not (file in self.erased and not self._has(file)):
                    files[name] = self.cache_path(file)
                    if not files[name].is_file():
                        files[name] = Path(scratch) / name
                        self.fetch(file, files[name])
            yield files

    def fetch(self, digest: str, target: Path) -> None:
        """Write an intact copy of one object to `target`. Raises `VersioningError` when there is none."""
        target.parent.mkdir(parents=True, exist_ok=True)
        for place in self.places:
            stream = place.open(digest)
            if stream is None:
                continue
            with stream, target.open("wb") as file:
                shutil.copyfileobj(stream, file, _CHUNK)
            with target.open("rb") as file:
                if _md5(file) == _bare(digest):
                    return
            target.unlink()
        raise self._lost(digest)

    def _has(self, digest: str) -> bool:
        return any(place.open(digest) is not None for place in self.places)

    def _lost(self, digest: str) -> VersioningError:
        if digest in self.erased:
            return VersioningError(f"{digest}: {self.erased[digest]} Nothing brings it back.")
        return VersioningError(
            f"{digest}: no intact copy in cache or remote. If another clone has it, `dvc push` there and run "
            f"again; `plumbline restore-workspace BACKUP DIR` brings back a backup."
        )

    def reachable(self, digest: str) -> Iterator[str]:
        """The hash itself and, of a folder, those of all its files."""
        yield digest
        if digest.endswith(_DIR):
            yield from sorted(set(self.listing(digest).values()))


def check_tree(folder: Path, files: dict[str, str], name: str, kind: str, where: str) -> list[HashCheck]:
    """Re-hash a folder (or, for {".": md5}, a file) on disk; a file that should not be there fails too."""
    checks = []
    for relative, digest in files.items():
        path = folder / relative
        found = md5_of(path) if path.is_file() else None
        checks.append(HashCheck(os.path.normpath(f"{name}/{relative}"), kind, digest, where, found))
    if "." not in files:
        present = (item.relative_to(folder).as_posix() for item in sorted(folder.rglob("*")) if item.is_file())
        extra = [relative for relative in present if relative not in files]
        checks += [HashCheck(f"{name}/{item}", kind, "no such file", where, "an extra file") for item in extra]
    return checks


def _find_cache(root: Path) -> _Objects:
    """The cache where DVC's configuration puts it, by the configuration alone: a repository takes long to open.

    Only for DVC's deprecated `cache.local`, the name of a remote in place of a folder, a repository is opened.
    """
    settings = read_config(root)["cache"]
    if settings.get("local"):
        from dvc.exceptions import DvcException
        from dvc.repo import Repo

        try:
            with Repo(os.fspath(root)) as repo:
                return _Objects(Path(repo.cache.local.path))
        except DvcException as error:
            raise VersioningError(f"{root}: cannot read DVC's configuration: {error}") from error
    return _Objects(Path(root, ".dvc", settings.get("dir") or "cache") / _LAYOUT)


def _open_default_remote(root: Path) -> tuple[ObjectPlace | None, str | None]:
    """The default remote and its URL. A folder is read as it is, without DVC's locks and databases."""
    found = default_remote(root)
    if found is None:
        return None, None
    name, settings = found
    path = local_path(str(settings["url"]))
    if path is not None and not settings.keys() & _OTHER_LAYOUTS:
        return _Objects(Path(path) / _LAYOUT, "remote"), path
    return _open_far_remote(root, name, settings), str(settings["url"])


def _open_far_remote(root: Path, name: str, settings: dict[str, Any]) -> _Remote:
    """DVC's way to a remote on another machine, through a repository of its own: opening one writes into it."""
    silence()
    from dvc.config import Config
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with tempfile.TemporaryDirectory(prefix="plumbline-remote-", ignore_cleanup_errors=True) as scratch:
            (Path(scratch) / ".dvc").mkdir()
            with Config(os.fspath(Path(scratch) / ".dvc"), validate=False).edit("local") as config:
                config["core"] = {"no_scm": True, "site_cache_dir": scratch, "remote": name}
                config["remote"][name] = {key: _plain(value) for key, value in settings.items()}
            with Repo(scratch) as repo:
                return _Remote(repo.cloud.get_remote_odb())
    except (DvcException, ImportError) as error:  # ImportError: a kind of remote whose plugin is not installed
        raise VersioningError(f"{root}: cannot open its DVC remote: {error}") from error


def _plain(value: Any) -> Any:
    """A setting of DVC as its file has it: paths are objects of its own."""
    return str(value) if isinstance(value, str | os.PathLike) else value


def _md5(stream: IO[bytes]) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    while chunk := stream.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def md5_of(path: Path) -> str:
    """The md5 of a file, as DVC's records have it."""
    with path.open("rb") as file:
        return _md5(file)


def _bare(digest: str) -> str:
    return digest.removesuffix(_DIR)
