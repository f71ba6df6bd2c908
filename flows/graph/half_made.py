"""Undo what a failed `plumbline init` began: remove what it made, put back what it changed."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def undone_on_failure(root: Path, changes: Iterable[str]) -> Iterator[None]:
    """Leave `root` as it was where the block fails, however it does.

    `changes` are the paths in `root` that the block makes or changes; a folder stands for all in it, unless it was
    there before: then name what is changed inside. Folders above `root` that were made are removed, too.
    """
    missing = [folder for folder in (root, *root.parents) if not folder.exists()]
    paths = [root / name for name in changes]
    kept = {path: path.read_bytes() for path in paths if path.is_file()}
    made = [path for path in paths if not path.exists() and not path.is_symlink()]
    try:
        yield
    except BaseException:
        for path in (*missing[-1:], *made):
            _remove(path)
        for path, data in kept.items():
            path.write_bytes(data)
        raise


def _remove(path: Path) -> None:
    with suppress(OSError):  # what cannot be removed must not hide why it is
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
