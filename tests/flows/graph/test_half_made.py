"""What a step made is removed when it fails, and what it changed is put back."""

from __future__ import annotations

from pathlib import Path

import pytest

from plumbline.flows.graph.half_made import undone_on_failure


def test_a_failure_leaves_what_was_there_alone(tmp_path: Path) -> None:
    """`.git` is a file in a worktree of git's: there is nothing below it to remove."""
    (tmp_path / ".git").write_text("gitdir: elsewhere")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/kept.txt").write_text("kept")
    with (
        pytest.raises(KeyboardInterrupt),
        undone_on_failure(tmp_path, [".git", ".git/index", "data", "data/kept.txt", "data/new", "params"]),
    ):
        (tmp_path / "data/kept.txt").write_text("changed")
        (tmp_path / "data/new").mkdir()
        (tmp_path / "data/new/file").write_text("x")
        (tmp_path / "params").symlink_to(tmp_path / "data")
        raise KeyboardInterrupt
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".git", "data", "kept.txt"]
    assert (tmp_path / "data/kept.txt").read_text() == "kept"


def test_folders_above_are_removed_and_a_good_end_keeps_all(tmp_path: Path) -> None:
    root = tmp_path / "a" / "b"
    with pytest.raises(ValueError, match="no"), undone_on_failure(root, ["c"]):
        (root / "c").mkdir(parents=True)
        raise ValueError("no")
    assert list(tmp_path.iterdir()) == []
    with undone_on_failure(root, ["c"]):
        (root / "c").mkdir(parents=True)
    assert (root / "c").is_dir()
