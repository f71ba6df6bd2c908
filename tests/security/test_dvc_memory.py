"""What DVC remembers of a workspace is pickles: whoever may replace them runs code as the operator."""

from __future__ import annotations

import os
import pickle
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from plumbline.tasks.storage.database.caches import kept_folder, own_folder
from plumbline.tasks.storage.versioning.repo import with_repo
from plumbline.tasks.storage.versioning.workspace import Versions, init_versioning

Stranger = Callable[..., subprocess.CompletedProcess[str]]
PLANT = """
import os, sqlite3, sys
folder, schema, key = sys.argv[1:]
os.umask(0)
os.rename(folder, folder + ".old")
os.makedirs(folder + "/hashes/local")
os.makedirs(folder + "/links")
with sqlite3.connect(folder + "/links/cache.db") as database:
    database.executescript(schema)
    columns = "(key, raw, store_time, access_time, mode, size, value, access_count)"
    database.execute(f"INSERT INTO Cache{columns} VALUES(?,0,0,0,1,0,'',0)", (bytes.fromhex(key),))
os.chmod(folder + "/links/cache.db", 0o666)
"""


class _Planted:
    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (os.fspath(self._mark),)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder under DVC with one recorded file, as a user has it whose variables say nothing of places."""
    for name in ("DVC_SITE_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    own_folder.cache_clear()
    root = tmp_path / "workspace"
    init_versioning(root)
    (root / "raw").mkdir()
    (root / "raw" / "a").write_text("recorded")
    Versions(root).track("raw")
    return root


def _memory(root: Path) -> Path:
    return Path(with_repo(root, lambda repo: str(repo.site_cache_dir)))


def test_nobody_else_may_replace_what_dvc_remembers(workspace: Path) -> None:
    memory = _memory(workspace)
    for folder in reversed([memory, *memory.parents]):
        mode = folder.stat().st_mode
        if not mode & 0o011:
            return  # nobody else gets further
        assert not mode & 0o022 or mode & stat.S_ISVTX, f"{folder} {stat.filemode(mode)}"


def test_another_user_plants_no_pickle(workspace: Path, stranger: Stranger, tmp_path: Path) -> None:
    memory, mark = _memory(workspace), tmp_path / "ran"
    with sqlite3.connect(memory / "links" / "cache.db") as database:
        tables = database.execute("SELECT sql FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
        schema = ";".join(row[0] for row in tables) + ";"
    key = pickle.dumps(_Planted(mark), 4).hex()
    done = stranger("/usr/bin/python3", "-c", PLANT, str(memory), schema, key)
    Versions(workspace).checkout()
    assert done.returncode != 0 and "PermissionError" in done.stderr
    assert not mark.exists()


def test_a_dvc_that_a_person_runs_by_hand_remembers_there_too(workspace: Path) -> None:
    said = subprocess.run(
        [sys.executable, "-c", "from dvc.repo import Repo; print(Repo('.').site_cache_dir)"],
        cwd=workspace,
        env={name: value for name, value in os.environ.items() if not name.startswith("DVC_SITE")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(said.stdout.strip()) == _memory(workspace)


def test_a_place_of_another_user_is_left_and_one_that_was_chosen_stays(workspace: Path, tmp_path: Path) -> None:
    from dvc.config import Config

    def place(given: str) -> str:
        with Config(os.fspath(workspace / ".dvc")).edit("local") as local:
            local["core"]["site_cache_dir"] = given
        _memory(workspace)
        return str(Config(os.fspath(workspace / ".dvc"))["core"]["site_cache_dir"])

    assert place("/home/another/.cache/plumbline/dvc") == str(kept_folder("dvc"))
    assert place(str(tmp_path / "chosen")) == str(tmp_path / "chosen")


def test_a_cache_folder_that_others_may_write_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = kept_folder("dvc")
    assert folder is not None and stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o777)
    assert kept_folder("dvc") is None
