"""Verb: everything that a workspace needs to be made again elsewhere, consistent while its services run.

1. Databases first, by SQLite's backup API (or `pg_dump`), MLflow's and the ledger's under the lock of the ledger.
2. Then feedback (inbox, spool, what has arrived, the raw store and its record), while none of it moves on: what was
   accepted is in the backup once, wherever it stood.
3. Then what else is named: registered files, the records of git and DVC, params. These are only ever added to, so that
   what the databases name is there.
4. Every object of DVC's cache and of the workspace's own remote, once.
5. Keys and credentials only where asked for.
6. `backup.json`, last: size and SHA-256 of every file. Without it a backup did not end, and is not restored.

Left out is what is made anew: outputs of stages (they are objects), work folders, logs, caches, services.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plumbline.data_contracts.artifact import sha256_file, write_json
from plumbline.data_contracts.errors import UsageError, VersioningError
from plumbline.data_contracts.inner_paths import require_new_folder
from plumbline.tasks.data.ingest_feedback import ARRIVED, one_writer
from plumbline.tasks.data.validate_feedback import RAW
from plumbline.tasks.params.registry import RegistryParams
from plumbline.tasks.params.whole import Params
from plumbline.tasks.registry.ledger.ledger import ledger_lock, read_ledger
from plumbline.tasks.registry.signing.keys import default_key_path, private_keys
from plumbline.tasks.registry.signing.trust import load_trust
from plumbline.tasks.storage.database.dumps import dump_postgres, is_postgres
from plumbline.tasks.storage.database.location import MLFLOW, REMOTE, STATE
from plumbline.tasks.storage.database.sqlite import copy_database
from plumbline.tasks.storage.versioning.git import head_commit, read_git
from plumbline.tasks.storage.versioning.lock import read_lock, read_tracked
from plumbline.tasks.storage.versioning.objects import ObjectStore

MANIFEST, FILES, OBJECTS, BUNDLE, KEYS, DUMPS = "backup.json", "workspace", "objects", "git.bundle", "keys", "postgres"
SCHEMA = 1
_SQLITE = b"SQLite format 3\0"
_SIDES = ("-wal", "-shm", "-journal")
_MADE_ANEW = {
    "remote",
    "work",
    "logs",
    "services",
    "prefect",
    "lineage",
    "versions",
    "reproduce",
    "dry-run",
    "freshness",
}
_SECRETS = {".plumbline/users.key", ".dvc/config.local"}


@dataclass(frozen=True, slots=True)
class BackupReport:
    """The saved files and bytes; `left_out` names the rest, which a person saves by other means."""

    workspace: str
    to: str
    files: int
    bytes: int
    objects: int
    keys: bool
    left_out: list[str] = field(default_factory=list)


def backup_workspace(root: Path, to: Path, params: Params, *, keys: bool = False) -> BackupReport:
    """Save a workspace into `to`, a new or empty folder outside of it.

    Raises `UsageError` for another folder, `OperationsError` or `VersioningError` for what cannot be read.
    """
    root = root.resolve()
    _require_new(root, to)
    to.mkdir(parents=True, exist_ok=True, mode=0o700)
    left_out = _save_databases(root, to, params)
    (to / FILES).mkdir(exist_ok=True)
    moving = (RAW, f"{RAW}.dvc", ARRIVED, f"{STATE}/intake", params.intake.inbox)
    with one_writer(root):
        left_out += _save_files(root, to, (name for name in _names(root, keys) if _is_below(name, moving)))
    left_out += _save_files(root, to, (name for name in _names(root, keys) if not _is_below(name, moving)))
    left_out += _save_history(root, to)
    objects = _save_objects(root, to / OBJECTS)
    if keys:
        left_out += _save_key(root, to / KEYS, params.registry)
    files = dict(sorted(_inventory(to)))
    content = {"schema": SCHEMA, "workspace": str(root), "keys": keys, "files": files, "left_out": left_out}
    write_json(to / MANIFEST, content)
    size = sum(int(entry["bytes"]) for entry in files.values())
    return BackupReport(str(root), str(to), len(files), size, objects, keys, left_out)


def _require_new(root: Path, to: Path) -> None:
    require_new_folder(to)
    if to.resolve().is_relative_to(root):
        raise UsageError(f"{to}: expected a folder outside of the workspace, which may be lost with it.")


def _save_databases(root: Path, to: Path, params: Params) -> list[str]:
    """MLflow's database and the ledger's at one moment between two promotions, then every other one."""
    state = to / FILES / STATE
    state.mkdir(parents=True)
    left_out = []
    ledger = read_ledger(root, params.operations)
    with ledger_lock(ledger) if (root / STATE / "operations.db").exists() else nullcontext():
        for name in (MLFLOW.name, "operations.db"):
            if (root / STATE / name).is_file():
                copy_database(root / STATE / name, state / name)
        for name, given in (("mlflow", params.registry.tracking_uri), ("operations", params.operations.database)):
            url = os.environ.get(given[1:], "") if given and given.startswith("$") else given
            if url and is_postgres(url):
                (to / DUMPS).mkdir(exist_ok=True)
                dump_postgres(url, to / DUMPS / f"{name}.dump")
            elif url:
                left_out.append(f"{name}: its store is named in params; save it where it is")
    ledger.dispose()
    return left_out


def _names(root: Path, keys: bool) -> Iterator[str]:
    """Files to save, by their path in the workspace: those that git or DVC tracks (raw batches), and `.plumbline`."""
    outputs = {path for stage in read_lock(root).values() for path in stage["outs"]}
    listed = read_git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", ".").split("\0")
    found = {name for name in listed if name and not _is_below(name, outputs)}
    for path in (*read_tracked(root), STATE.as_posix()):
        files = (root / path).rglob("*") if (root / path).is_dir() else [root / path]
        found |= {file.relative_to(root).as_posix() for file in files if file.is_file()}
    found |= _SECRETS if keys else set()
    for name in sorted(found - (set() if keys else _SECRETS)):
        parts = name.split("/")
        made_anew = parts[0] == STATE.name and len(parts) > 1 and parts[1] in _MADE_ANEW
        held = parts[0] == STATE.name and name.endswith((".lock", *_SIDES))
        if not made_anew and not held and (root / name).is_file():
            yield name


def _is_below(name: str, folders: Iterable[str]) -> bool:
    return any(name == folder or name.startswith(f"{folder}/") for folder in folders)


def _save_files(root: Path, to: Path, names: Iterable[str]) -> list[str]:
    """Save files of the workspace; return what was left out, because a link leads to a file of somebody else's."""
    left_out = []
    for name in names:
        if (root / name).resolve().is_relative_to(root):
            _save_file(root / name, to / FILES / name)
        else:
            left_out.append(f"{name}: a link out of the workspace; save what it leads to where that is")
    return left_out


def _save_file(path: Path, to: Path) -> None:
    """One file; a database by the backup API unless it was saved already. One that went meanwhile is passed over."""
    to.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        with path.open("rb") as file:
            is_database = path.suffix == ".db" and file.read(len(_SQLITE)) == _SQLITE
        if not is_database:
            shutil.copyfile(path, to)
        elif not to.exists():
            copy_database(path, to)


def _save_history(root: Path, to: Path) -> list[str]:
    """Git's history as a bundle, of a repository that is the workspace's own."""
    try:
        own = Path(read_git(root, "rev-parse", "--show-toplevel").strip()).resolve() == root
    except VersioningError:
        own = False
    if not own:
        return ["git: the workspace is part of a larger repository; save that where it is"]
    if head_commit(root) is None:
        return ["git: there is no commit yet"]
    read_git(root, "bundle", "create", "--quiet", str((to / BUNDLE).resolve()), "--all")
    return []


def _save_objects(root: Path, to: Path) -> int:
    """Every object of the cache and of the own remote, once, and what DVC's run-cache knows. Returns how many."""
    cache = ObjectStore(root).cache_folder  # …/files/md5
    own = root / REMOTE / "files" / "md5"
    count = 0
    for source in (cache, own):
        for path in sorted(source.glob("[0-9a-f][0-9a-f]/*")):
            target = to / "files" / "md5" / path.parent.name / path.name
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
                count += 1
    for path in sorted((cache.parents[1] / "runs").rglob("*")):
        if path.is_file():
            target = to / "runs" / path.relative_to(cache.parents[1] / "runs")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    return count


def _save_key(root: Path, to: Path, params: RegistryParams) -> list[str]:
    if params.signing_key is not None:
        return ["signing key: registry.signing_key says where it is; save it there"]
    trust = load_trust(root)
    own = [default_key_path()] if trust is None else [key.path for key in private_keys(default_key_path(), trust)]
    if not any(key.is_file() for key in own):
        return ["signing key: none on this machine"]
    to.mkdir(mode=0o700)
    for key in own:
        shutil.copyfile(key, to / key.name)
        (to / key.name).chmod(0o600)
    return []


def _inventory(folder: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for path in folder.rglob("*"):
        if path.is_file():
            facts = {"sha256": sha256_file(path), "bytes": path.stat().st_size}
            yield path.relative_to(folder).as_posix(), facts
