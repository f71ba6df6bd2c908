"""Verb: a workspace from a backup, in a new folder, once every file of the backup has been found whole.

The folder appears when it is complete. DVC's objects become its cache, from which the outputs of the stages are checked
out; its own remote starts empty and is filled by the next run. Locations follow the folder as in a moved workspace.
"""

from __future__ import annotations

import re
import shlex
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from plumbline.data_contracts.artifact import FULL_DISK, sha256_file
from plumbline.data_contracts.errors import CheckFailed, UsageError
from plumbline.data_contracts.inner_paths import is_inner, require_new_folder
from plumbline.tasks.access.secret_files import make_secret
from plumbline.tasks.operations.backup_workspace import BUNDLE, DUMPS, FILES, KEYS, MANIFEST, OBJECTS, SCHEMA
from plumbline.tasks.registry.signing.keys import default_key_path
from plumbline.tasks.storage.database.location import REMOTE, STATE
from plumbline.tasks.storage.versioning.git import run_git
from plumbline.tasks.storage.versioning.workspace import Versions, init_versioning

_EXAMPLES = 3
_KEY_NAME = re.compile(r"signing(-[0-9a-f]{16})?\.key")


@dataclass(frozen=True, slots=True)
class RestoredWorkspace:
    """The restored parts. `to_do` names what a person has to do by other means."""

    workspace: str
    came_from: str
    files: int
    keys: bool
    to_do: list[str] = field(default_factory=list)


def restore_workspace(backup: Path, to: Path, *, keys: bool = False) -> RestoredWorkspace:
    """Verify a backup and make a workspace of it in `to`, a new or empty folder.

    With `keys` the signing keys are put where this user's keys belong, unless others are there. Raises `UsageError`
    for a folder that will not do, `CheckFailed` for a backup that is not whole.
    """
    require_new_folder(to)
    manifest = verify_backup(backup)
    if keys:
        _require_place_for_keys(backup, manifest)
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{to.name}.restore-", dir=to.parent))
    except OSError as error:
        if error.errno in FULL_DISK:
            raise
        raise UsageError(f"{to}: cannot write there ({error.strerror}). Choose another folder.") from error
    try:
        _fill(backup, draft, manifest)
        if keys:
            _restore_keys(backup, manifest)
        draft.rename(to)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return RestoredWorkspace(
        str(to), str(manifest["workspace"]), len(manifest["files"]), keys, _to_do(backup, manifest)
    )


def verify_backup(backup: Path) -> dict[str, Any]:
    """The manifest of a backup whose files are those that it names. Raises `UsageError` or `CheckFailed`."""
    try:
        manifest: dict[str, Any] = orjson.loads((backup / MANIFEST).read_bytes())
        files: Mapping[str, Mapping[str, Any]] = manifest["files"]
        schema = manifest["schema"]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(
            f"{backup}: expected a backup with {MANIFEST}, found none: it is no backup, or one that did not end. "
            f"Nothing was restored; choose another one, or make it again with `plumbline backup`."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckFailed(f"{backup / MANIFEST}: it cannot be read ({error}). Nothing was restored.") from error
    if schema != SCHEMA:
        raise UsageError(
            f"{backup}: expected a backup of schema {SCHEMA}, found {schema}. Use the program that made it."
        )
    wrong = [problem for name, entry in files.items() if (problem := _problem(backup, name, entry)) is not None]
    if wrong:
        more = f" and {len(wrong) - _EXAMPLES} more" if len(wrong) > _EXAMPLES else ""
        raise CheckFailed(
            f"{backup}: {len(wrong)} of {len(files)} files are not what was saved: "
            f"{'; '.join(wrong[:_EXAMPLES])}{more}. Nothing was restored; choose another backup."
        )
    return manifest


def _problem(backup: Path, name: str, entry: Mapping[str, Any]) -> str | None:
    path = backup / name
    if not is_inner(name) or not path.resolve().is_relative_to(backup.resolve()):
        return f"{name[:80]}: it leads out of the backup, or into git's own files"
    if not path.is_file():
        return f"{name}: missing"
    return None if sha256_file(path) == entry["sha256"] else f"{name}: changed"


def _fill(backup: Path, draft: Path, manifest: Mapping[str, Any]) -> None:
    """History, files, objects, then the outputs of the stages out of them."""
    if BUNDLE in manifest["files"]:
        run_git(draft, "clone", "--quiet", "--no-checkout", str((backup / BUNDLE).resolve()), ".")
        run_git(draft, "remote", "remove", "origin")
    for name in manifest["files"]:
        top, _, rest = name.partition("/")
        place = {FILES: draft, OBJECTS: draft / ".dvc" / "cache"}.get(top)
        if place is not None:
            (place / rest).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(backup / name, place / rest)
    if BUNDLE in manifest["files"]:
        run_git(draft, "reset", "--quiet")  # the index of the commit; the files stay as they were saved
    (draft / REMOTE).mkdir(parents=True, exist_ok=True)
    (draft / STATE).chmod(0o700)
    init_versioning(draft)
    Versions(draft).checkout()


def _require_place_for_keys(backup: Path, manifest: Mapping[str, Any]) -> None:
    keys = _saved_keys(backup, manifest)
    if not keys:
        raise UsageError(f"{backup}: expected a signing key in it, found none: it was made without `--keys`.")
    for saved, there in keys:
        if there.exists() and there.read_bytes() != saved.read_bytes():
            raise UsageError(
                f"{there}: another signing key is there. Nothing was restored. Set XDG_CONFIG_HOME to a folder of its "
                f"own for this workspace, or restore without `--keys` and name the key in registry.signing_key."
            )


def _restore_keys(backup: Path, manifest: Mapping[str, Any]) -> None:
    for saved, there in _saved_keys(backup, manifest):
        if not there.exists():
            make_secret(there, saved.read_bytes())


def _saved_keys(backup: Path, manifest: Mapping[str, Any]) -> list[tuple[Path, Path]]:
    """Each private key in the backup, and where it belongs."""
    names = [Path(name).name for name in manifest["files"] if name.startswith(f"{KEYS}/")]
    strange = [name for name in names if not _KEY_NAME.fullmatch(name)]
    if strange:
        raise UsageError(f"{backup}: expected signing keys in {KEYS}/, found {strange[:3]}. Nothing was restored.")
    return [(backup / KEYS / name, default_key_path().with_name(name)) for name in names]


def _to_do(backup: Path, manifest: Mapping[str, Any]) -> list[str]:
    dumps = [backup / name for name in manifest["files"] if name.startswith(f"{DUMPS}/")]
    restore = "pg_restore --clean --if-exists --dbname=URL"
    return [*manifest["left_out"], *(f"{restore} {shlex.quote(str(dump))}" for dump in dumps)]
