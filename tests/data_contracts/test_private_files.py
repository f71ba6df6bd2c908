"""Who may read a workspace follows from the mode of its `.plumbline` folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from plumbline.data_contracts.artifact import write_bytes, writing
from plumbline.data_contracts.private_files import close_to_others, keep_private, open_to_others, workspace_umask


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def modes(root: Path) -> dict[str, int]:
    return {path.relative_to(root).as_posix(): stat.S_IMODE(path.stat().st_mode) for path in root.rglob("*")}


@pytest.mark.parametrize(
    ("home", "expected"),
    [
        (None, 0o077),  # no workspace yet
        (0o700, 0o077),
        (0o755, 0o077),  # made by an earlier version: nobody chose that
        (0o775, 0o077),
        (0o710, 0o077),  # nobody lists it
        (0o750, 0o027),  # given to the group, to read
        (0o770, 0o007),  # given to the group, to work in
    ],
)
def test_the_mode_of_one_folder_says_who_reads(tmp_path: Path, home: int | None, expected: int) -> None:
    if home is not None:
        (tmp_path / ".plumbline").mkdir()
        (tmp_path / ".plumbline").chmod(home)
    assert workspace_umask(tmp_path) == expected


def test_artifacts_and_files_have_the_modes_that_the_umask_leaves(tmp_path: Path) -> None:
    keep_private()
    with writing(tmp_path / "artifact", contract="c", version=1) as draft:
        (draft.path / "rows.jsonl").write_text("{}\n")
    write_bytes(tmp_path / "file", b"")
    assert modes(tmp_path) == {
        "artifact": 0o700,
        "artifact/rows.jsonl": 0o600,
        "artifact/manifest.json": 0o600,
        "file": 0o600,
    }


def test_what_a_group_was_given_is_not_taken_away(tmp_path: Path) -> None:
    for name, mode in ((".plumbline", 0o750), ("data", 0o755)):
        (tmp_path / name).mkdir(mode=mode)
    for name, mode in (("theirs", 0o640), ("anybodys", 0o646)):
        (tmp_path / "data" / name).touch()
        (tmp_path / "data" / name).chmod(mode)
    keep_private(tmp_path)
    (tmp_path / "data" / "new").touch()
    assert [path.name for path in open_to_others(tmp_path)] == ["data", "anybodys"]
    mended, left = close_to_others(tmp_path)
    assert ([path.name for path in mended], left) == (["data", "anybodys"], [])
    assert modes(tmp_path) == {
        ".plumbline": 0o750,
        "data": 0o750,
        "data/theirs": 0o640,
        "data/anybodys": 0o640,
        "data/new": 0o640,
    }


def test_a_drop_box_keeps_letting_others_drop(tmp_path: Path) -> None:
    inbox = tmp_path / "inbox"
    for name, mode in (("", 0o755), ("pairs", 0o733), (".done", 0o733), ("pairs/theirs", 0o644)):
        if name.endswith("theirs"):
            (inbox / name).touch()
        else:
            (inbox / name).mkdir()
        (inbox / name).chmod(mode)
    close_to_others(tmp_path, inbox)
    assert modes(tmp_path) == {"inbox": 0o700, "inbox/pairs": 0o733, "inbox/.done": 0o700, "inbox/pairs/theirs": 0o600}
