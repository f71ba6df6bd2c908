"""The parts of the suite: the draw of a slice, and worlds that are made once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support import once, parts


@dataclass(eq=False)
class Item:
    """A test as the hooks see it."""

    path: Path
    name: str
    marks: dict[str, dict[str, Any]] = field(default_factory=dict)

    def get_closest_marker(self, name: str) -> Any:
        return pytest.mark.long(**self.marks[name]).mark if name in self.marks else None


def suite() -> list[Any]:
    """Twelve files, each with four long tests and one that is not; the last keeps three."""
    return [
        Item(Path(f"/x/test_{file}.py"), f"{file}.{n}", {"long": {"keep": 3} if file == 11 else {}} if n else {})
        for file in range(12)
        for n in range(5)
    ]


def test_a_slice_is_a_sixth_of_the_files_and_one_test_of_each() -> None:
    items = suite()
    seen: set[str] = set()
    for seed in range(60):
        drawn = parts._drawn(items, seed)
        files = {item.path.name for item in drawn}
        assert len(files) == 2
        assert len(drawn) == (4 if "test_11.py" in files else 2)
        assert all("long" in item.marks for item in drawn)
        assert drawn == parts._drawn(items, seed), "the seed repeats it"
        seen |= {item.name for item in drawn}
    assert len(seen) > 30, "what one run leaves out another takes"


def test_an_order_by_a_seed_keeps_a_file_in_one_piece() -> None:
    items = suite()
    orders = [[item.name for item in parts._shuffled(items, seed)] for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(item.name for item in items)
    assert all(len({name.split(".")[0] for name in orders[0][at : at + 5]}) == 1 for at in range(0, 60, 5))


def test_what_takes_long_is_made_once_until_its_ingredients_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(once, "KEPT", tmp_path / "kept")
    recipe, made = tmp_path / "recipe.yaml", []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "content").write_text(recipe.read_text())

    for number, text in enumerate(("one", "one", "two")):
        recipe.write_text(text)
        once._digest.cache_clear()  # as another process would read it
        copy = once.made_once("world", (recipe,), make, tmp_path / str(number))
        assert (copy / "content").read_text() == text
    assert len(made) == 2
    assert len(list((tmp_path / "kept").glob("world-*"))) == 1, "what is out of date goes"


def test_what_could_not_be_made_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(once, "KEPT", tmp_path / "kept")

    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        once.made_once("world", (), fail, tmp_path / "copy")
    whole = once.made_once("world", (), lambda folder: (folder / "whole").touch(), tmp_path / "copy")
    assert [path.name for path in whole.iterdir()] == ["whole"]
