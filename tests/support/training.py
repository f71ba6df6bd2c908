"""Parts that tests of training share: the end of a process within a run, and the comparison of written folders."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import orjson

from plumbline.tasks.training.finetuning.methods import FinetuneInputs


class Killed(Exception):
    """Stands for the end of the process."""


def killed_at(step: int, total: int) -> Callable[[int, int, str], None]:
    """Progress that ends a run of `total` steps behind one of them."""

    def progress(done: int, of: int, note: str) -> None:
        if (done, of) == (step, total):
            raise Killed

    return progress


def same_bytes(one: Path, other: Path) -> bool:
    """True if two folders hold the same files."""
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    return files == sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file()) and all(
        (one / file).read_bytes() == (other / file).read_bytes() for file in files
    )


def rows(folder: Path) -> list[dict[str, Any]]:
    """The curve that a training wrote."""
    return [orjson.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]


class FirstRun:
    """One training for all tests of a file that begin with it: each gets a copy of its folders, and its facts."""

    def __init__(self, kept: Path) -> None:
        self._kept = kept
        self._facts: dict[str, Any] | None = None

    def of(self, inputs: FinetuneInputs, train: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], Path]:
        """Facts and folder of what `train` does to `inputs`, which are the same for every test but for their place."""
        pairs = ((inputs.folder, self._kept / "folder"), (inputs.work, self._kept / "work"))
        if self._facts is None:
            self._facts = train()
            for made, kept in pairs:
                shutil.copytree(made, kept, symlinks=True)
        else:
            for made, kept in pairs:
                shutil.copytree(kept, made, symlinks=True, dirs_exist_ok=True)
        return deepcopy(self._facts), inputs.folder
