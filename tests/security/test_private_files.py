"""A stranger on the same machine reads no prompt, feedback, traffic or model, whatever umask the owner has."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

PLUMBLINE = Path(sys.executable).parent / "plumbline"
SECRET = "the maiden name of my mother"
STRANGER = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder that everybody may enter, as a home often is; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def made() -> Iterator[Path]:
    """A workspace made and used under umask 0: files ingested and dropped, rows validated, a token made."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield make(Path(name), 0o000)


@pytest.fixture
def as_stranger() -> None:
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv, to become another user")


def plumbline(folder: Path, *arguments: object, umask: int) -> str:
    done = subprocess.run(
        [PLUMBLINE, *map(str, arguments)], cwd=folder, umask=umask, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def make(home: Path, umask: int) -> Path:
    workspace = home / "workspace"
    batch = home / "batch.jsonl"
    rows = [
        {"id": f"r{i}", "prompt": f"{SECRET} {i} {'xyz'[i % 3] * 9}", "chosen": f"yes {i}", "rejected": f"no {i}"}
        for i in range(8)
    ]
    batch.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    plumbline(home, "init", "workspace", umask=umask)
    plumbline(workspace, "ingest", "human_pairs", batch, umask=umask)
    dropped = workspace / "inbox" / "human_pairs" / "dropped.jsonl"
    dropped.parent.mkdir(parents=True, mode=0o700)
    dropped.parent.parent.chmod(0o700)
    dropped.write_bytes(b"".join(orjson.dumps({**row, "id": f"d{row['id']}"}) + b"\n" for row in rows))
    dropped.chmod(0o644)
    os.utime(dropped, (1, 1))
    plumbline(workspace, "inbox", "scan", umask=umask)
    plumbline(workspace, "validate", "human_pairs", batch, umask=umask)
    plumbline(workspace, "intake", "token", "app", umask=umask)
    return workspace


def open_ones(root: Path) -> dict[str, str]:
    """Every file and folder below a folder that group or others may read, write or enter; git's own left out."""
    found = {}
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if Path(folder, name) != root / ".git"]
        for name in (*folders, *files):
            mode = Path(folder, name).lstat().st_mode
            if not stat.S_ISLNK(mode) and mode & 0o077:
                found[str(Path(folder, name).relative_to(root))] = stat.filemode(mode)
    return found


def test_nothing_of_a_workspace_is_open_under_umask_0(made: Path) -> None:
    assert open_ones(made) == {}
    seen = {path.name for path in made.rglob("*")}
    assert {"operations.db", "raw", "dry-run", ".done", "tokens.json"} <= seen


@pytest.mark.slow
def test_nor_under_the_usual_umask(home: Path) -> None:
    plumbline(home, "init", "workspace", umask=0o022)
    assert open_ones(home / "workspace") == {}


def test_git_keeps_no_feedback(made: Path) -> None:
    objects = subprocess.run(
        ["git", "cat-file", "--batch-all-objects", "--batch"], cwd=made, capture_output=True, check=True
    )
    assert SECRET.encode() not in objects.stdout


def test_another_user_reads_nothing(made: Path, as_stranger: None) -> None:
    files = [path for path in made.rglob("*") if path.is_file() and ".git" not in path.parts]
    assert len(files) > 10
    done = subprocess.run([*STRANGER, "cat", *map(str, files)], capture_output=True, check=False)
    assert done.returncode != 0
    assert done.stdout == b""
    assert any(SECRET.encode() in path.read_bytes() for path in files)


@pytest.mark.long
@pytest.mark.slow
def test_an_earlier_workspace_is_found_open_and_put_right(made: Path, home: Path, as_stranger: None) -> None:
    workspace = home / "workspace"
    shutil.copytree(made, workspace)
    for path in (workspace, *workspace.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    (batch,) = list((workspace / "data" / "raw" / "human_pairs").iterdir())[:1]
    seen = subprocess.run([*STRANGER, "cat", batch], capture_output=True, check=True)
    assert SECRET.encode() in seen.stdout  # as it was

    told = subprocess.run([PLUMBLINE, "doctor", "--json"], cwd=workspace, capture_output=True, check=False)
    assert told.returncode == 1
    finding = {item["name"]: item for item in orjson.loads(told.stdout)["findings"]}["private files"]
    assert not finding["ok"]
    assert "--fix" in finding["advice"]
    assert stat.S_IMODE(batch.stat().st_mode) == 0o644  # told, not touched

    plumbline(workspace, "doctor", "--fix", umask=0o022)
    private = ("data", ".plumbline", ".dvc/cache", ".dvc/tmp", "inbox")
    assert {name: open_ones(workspace / name) for name in private} == {name: {} for name in private}
    assert subprocess.run([*STRANGER, "cat", batch], capture_output=True, check=False).stdout == b""


def test_a_link_that_a_stranger_planted_is_not_followed(home: Path) -> None:
    from plumbline.data_contracts.private_files import close_to_others

    (home / "data").mkdir(mode=0o777)
    elsewhere = home / "elsewhere"
    elsewhere.write_text("of another program")
    elsewhere.chmod(0o644)
    (home / "data" / "link").symlink_to(elsewhere)
    close_to_others(home)
    assert stat.S_IMODE(elsewhere.stat().st_mode) == 0o644
