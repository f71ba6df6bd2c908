"""Verb: bring a registered version's datasets, models and params back as a workspace of its own."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plumbline.data_contracts.artifact import FULL_DISK, write_bytes
from plumbline.data_contracts.errors import RegistryRefused, UsageError, VersioningError
from plumbline.data_contracts.inner_paths import is_inner, require_new_folder
from plumbline.tasks.params.registry import RegistryParams
from plumbline.tasks.registry.store.client import Store
from plumbline.tasks.registry.versions.manifest import all_paths
from plumbline.tasks.registry.versions.registered import StoredFiles, resolve
from plumbline.tasks.storage.versioning.git import commit_git
from plumbline.tasks.storage.versioning.objects import ObjectStore, check_tree
from plumbline.tasks.storage.versioning.workspace import Versions, init_versioning


def restore_version(root: Path, uri: str, to: Path, params: RegistryParams) -> dict[str, Any]:
    """Restore everything that a version was made from into `to`, a new or empty folder.

    Objects come from the cache, or the remote, by hash, whatever the workspace holds now. `to`
    appears only when it is whole and every file has been re-hashed; there `dvc status` is clean.
    Returns {"model_uri", "to", "objects": {path: DVC hash}}. Raises `UsageError` when `to` is not
    empty, `SignatureError` when the version is not what was signed, `RegistryError` or `VersioningError` when it or an
    object of it is lost.
    """
    require_new_folder(to)
    store = Store(root, params, read_only=True)
    version = resolve(store, uri)
    stored = StoredFiles(store, version)
    pinned = stored.check_manifest()
    if not pinned.ok:
        raise RegistryRefused(
            f"{version.uri}: {pinned.problem()} What it names cannot be trusted; nothing was restored."
        )
    stored.require_signed()
    manifest = stored.manifest()
    paths = all_paths(manifest)
    if stray := [name for name in (*manifest["texts"], *paths) if not is_inner(name)]:
        raise RegistryRefused(
            f"{version.uri}: its manifest names {stray[0][:80]!r}, which is no path inside a workspace."
        )
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        draft = to.with_name(f".{to.name}.restore-{secrets.token_hex(8)}")
        draft.mkdir()
    except OSError as error:
        if error.errno in FULL_DISK:
            raise
        raise UsageError(f"{to}: cannot write there ({error.strerror}). Choose another folder.") from error
    try:
        _fill(ObjectStore(root), draft, manifest, paths)
        commit_git(draft, f"Restore {version.uri}")
        draft.rename(to)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return {"model_uri": version.uri, "to": str(to), "objects": paths}


def _fill(source: ObjectStore, draft: Path, manifest: Mapping[str, Any], paths: Mapping[str, str]) -> None:
    """Texts, then objects into a cache of the draft's own, then a checkout, then a re-hash of every file.

    Its remote is the source's, unless that is a folder of the source's own: nothing is ever pushed into that.
    """
    for name, entry in manifest["texts"].items():
        (draft / name).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(draft / name, entry["text"].encode())
    init_versioning(draft, source.shared_remote)
    target = ObjectStore(draft)
    for digest in sorted({item for path in paths.values() for item in source.reachable(path)}):
        source.fetch(digest, target.cache_path(digest))
    Versions(draft).checkout()
    checks = [
        check
        for path, digest in paths.items()
        for check in check_tree(draft / path, target.files(digest), path, "data", "restored")
    ]
    bad = [check.problem() for check in checks if not check.ok]
    if bad:
        raise VersioningError(f"restored files are not what was registered: {' '.join(bad[:3])}")
