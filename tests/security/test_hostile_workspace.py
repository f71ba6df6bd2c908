"""A workspace or a backup of somebody else's: to look at it or bring it back runs nothing and changes nothing else."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from plumbline.data_contracts.errors import CheckFailed, UsageError, VersioningError
from plumbline.data_contracts.inner_paths import is_inner
from plumbline.tasks.operations.backup_workspace import backup_workspace
from plumbline.tasks.operations.restore_workspace import restore_workspace
from plumbline.tasks.params.whole import Params
from plumbline.tasks.storage.versioning.git import run_git, why_unsound
from plumbline.tasks.storage.versioning.objects import ObjectStore
from plumbline.tasks.storage.versioning.workspace import Versions, init_versioning

OWNED = b"owned\n"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file of the user's, outside of every workspace."""
    path = tmp_path / "home" / "profile"
    path.parent.mkdir()
    path.write_text("mine\n")
    return path


@pytest.mark.parametrize(
    "name", ["", "/etc/x", "a//etc/x", "../x", "a/../../x", "./x", "a/", ".git/config", "a/.GIT/hooks/x", "a\0b", None]
)
def test_a_name_that_leads_out_is_told(name: object) -> None:
    assert not is_inner(name)
    assert is_inner("a/b.c") and is_inner(".gitignore") and is_inner(".dvc/config")


def _backup(folder: Path, names: Callable[[Path], dict[str, bytes]]) -> Path:
    files = names(folder)
    for name, data in files.items():
        path = Path(f"{folder}/{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    entries = {name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in files.items()}
    content = {"schema": 1, "workspace": "/w", "keys": False, "files": entries, "left_out": []}
    (folder / "backup.json").write_bytes(orjson.dumps(content))
    return folder


def test_a_backup_writes_nothing_outside_of_what_it_restores(tmp_path: Path, victim: Path) -> None:
    backup = _backup(tmp_path / "backup", lambda folder: {f"workspace/{victim}": OWNED})
    with pytest.raises(CheckFailed, match="leads out"):
        restore_workspace(backup, tmp_path / "again")
    assert victim.read_text() == "mine\n"
    assert not (tmp_path / "again").exists()


def test_a_backup_brings_no_configuration_of_git(tmp_path: Path) -> None:
    """Its programs would run at the first question to git, which the restore itself asks."""
    mark, source = tmp_path / "ran", tmp_path / "source"
    source.mkdir()
    run_git(source, "init", "--quiet")
    (source / "a").write_text("a")
    run_git(source, "add", "a")
    run_git(source, "-c", "user.name=x", "-c", "user.email=x@y", "commit", "--quiet", "--message", "a")
    run_git(source, "bundle", "create", "--quiet", str(tmp_path / "bundle"), "--all")
    config = f"[core]\n\trepositoryformatversion = 0\n\tfsmonitor = \"touch '{mark}'; false\"\n".encode()
    files = {"git.bundle": (tmp_path / "bundle").read_bytes(), "workspace/.git/config": config}
    with pytest.raises(CheckFailed, match="git's own files"):
        restore_workspace(_backup(tmp_path / "backup", lambda _: files), tmp_path / "again")
    assert not mark.exists()


def test_a_missing_commit_is_not_fetched_by_programs_that_the_repository_names(tmp_path: Path) -> None:
    root, mark = tmp_path / "w", tmp_path / "ran"
    root.mkdir()
    run_git(root, "init", "--quiet")
    for name, value in {
        "core.repositoryformatversion": "1",
        "extensions.partialClone": "origin",
        "remote.origin.url": f"file://{root}",
        "remote.origin.promisor": "true",
        "remote.origin.uploadpack": f"touch '{mark}';",
        "protocol.file.allow": "always",
    }.items():
        run_git(root, "config", name, value)
    assert why_unsound(root, "1" * 40) is not None
    assert not mark.exists()


def _listed(root: Path, relpath: str) -> str:
    """Put a folder's listing into the cache that names one file, and let the workspace record it as `out`."""
    init_versioning(root)
    cache = root / ".dvc/cache/files/md5"

    def keep(data: bytes, suffix: str = "") -> str:
        digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
        (cache / digest[:2]).mkdir(parents=True, exist_ok=True)
        (cache / digest[:2] / f"{digest[2:]}{suffix}").write_bytes(data)
        return f"{digest}{suffix}"

    listing = keep(orjson.dumps([{"md5": keep(OWNED), "relpath": relpath}]), ".dir")
    (root / "dvc.yaml").write_text("stages:\n  x:\n    cmd: 'true'\n    outs:\n    - out\n")
    out = f"    - path: out\n      hash: md5\n      md5: {listing}\n      size: 6\n      nfiles: 1\n"
    (root / "dvc.lock").write_text(f"schema: '2.0'\nstages:\n  x:\n    cmd: 'true'\n    outs:\n{out}")
    return listing


def test_a_listing_writes_no_file_outside_of_its_folder(tmp_path: Path, victim: Path) -> None:
    root = tmp_path / "w"
    listing = _listed(root, "../../home/planted")
    with pytest.raises(VersioningError):  # DVC itself calls what it may not read missing
        Versions(root).checkout()
    with pytest.raises(VersioningError, match="no path inside a folder"):
        ObjectStore(root).files(listing)
    assert sorted(victim.parent.iterdir()) == [victim]
    shutil.rmtree(root)
    _listed(root, "sub/file")
    Versions(root).checkout()
    assert (root / "out/sub/file").read_bytes() == OWNED


def test_what_is_no_hash_is_taken_for_no_path(tmp_path: Path, victim: Path) -> None:
    """An object that is not what its hash says is removed again: it must be one of the cache."""
    root = tmp_path / "w"
    init_versioning(root)
    store = ObjectStore(root)
    for digest in (f"ab{victim}", "ab/../../../../../../home/profile"):
        with pytest.raises(VersioningError, match="expected an md5"):
            store.fetch(digest, store.cache_path(digest))
    assert victim.read_text() == "mine\n"


def test_a_backup_brings_no_files_but_keys_into_the_folder_of_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    backup = _backup(tmp_path / "backup", lambda folder: {"keys/trusted.pub": OWNED, "workspace/a": b"a"})
    with pytest.raises(UsageError, match="expected signing keys"):
        restore_workspace(backup, tmp_path / "again", keys=True)
    assert not (tmp_path / "config").exists()


def test_a_backup_takes_no_file_that_a_link_of_the_workspace_names(tmp_path: Path, victim: Path) -> None:
    root = tmp_path / "workspace"
    init_versioning(root)
    (root / ".plumbline/notes").mkdir(parents=True)
    (root / ".plumbline/notes/mine").symlink_to(victim)
    (root / "linked").symlink_to(victim)
    report = backup_workspace(root, tmp_path / "backup", Params())
    assert {line.partition(":")[0] for line in report.left_out} >= {".plumbline/notes/mine", "linked"}
    assert all(path.read_bytes() != b"mine\n" for path in (tmp_path / "backup").rglob("*") if path.is_file())
