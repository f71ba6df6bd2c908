from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from plumbline.tasks.registry.lineage.differences import (
    compare_environments,
    compare_figures,
    compare_lines,
    compare_weights,
)


def test_weights_differ_by_their_largest_and_by_norm(tmp_path: Path) -> None:
    """Against (3, 4): (3, 4.5) is apart by 0.5 at most; the norms are 0.5 and 5, so 0.1."""
    save_file({"w": np.array([3.0, 4.0], np.float32), "b": np.zeros(1, np.float32)}, tmp_path / "a")
    save_file({"w": np.array([3.0, 4.5], np.float32), "c": np.zeros(1, np.float32)}, tmp_path / "b")
    found = compare_weights(tmp_path / "a", tmp_path / "b")
    assert (found["max_abs"], found["at"], found["unmatched"]) == (0.5, "w", ["b", "c"])
    assert found["relative_norm"] == pytest.approx(0.1)


def test_lines_are_counted_as_sets_with_repetition(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1\n1\n2\n")
    (tmp_path / "b").write_text("2\n1\n3\n")
    assert compare_lines(tmp_path / "a", tmp_path / "b") == {"missing": 1, "new": 1, "of": 3, "reordered": False}
    (tmp_path / "b").write_text("2\n1\n1\n")
    assert compare_lines(tmp_path / "a", tmp_path / "b")["reordered"] is True


def test_figures_name_the_largest_difference_first(tmp_path: Path) -> None:
    (tmp_path / "a").write_text('{"x": {"y": 1.0, "z": 2}, "same": "s", "gone": 1}')
    (tmp_path / "b").write_text('{"x": {"y": 1.5, "z": 9}, "same": "s"}')
    found = compare_figures(tmp_path / "a", tmp_path / "b")
    assert found["differing"] == 3
    assert [item["key"] for item in found["largest"]] == ["x.z", "x.y", "gone"]


def test_environments_differ_in_python_platform_and_packages() -> None:
    then = {"python": "3.11.7", "platform": "Linux-x86_64", "packages": {"torch": "2.13.0", "old": "1"}}
    here = {"python": "3.12.1", "platform": "Linux-x86_64", "packages": {"torch": "2.14.0", "new": "2"}}
    assert compare_environments(then, here) == [
        "python: 3.11.7 then, 3.12.1 here",
        "new: absent then, 2 here",
        "old: 1 then, absent here",
        "torch: 2.13.0 then, 2.14.0 here",
    ]
    assert compare_environments(then, then) == []
