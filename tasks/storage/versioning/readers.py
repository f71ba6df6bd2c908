"""Readers of a path: a DVC command that somebody runs by hand, as `dvc repro` says in DVC's own table."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from dvc.repo import Repo


def is_read(repo: Repo, path: Path) -> bool:
    """True if another living process reads `path`. Only under the repository's lock, where no new reader can enter."""
    from dvc.rwlock import RWLOCK_FILE

    try:
        table = json.loads((Path(str(repo.tmp_dir)) / RWLOCK_FILE).read_bytes())
    except FileNotFoundError:
        return False  # DVC has not read anything yet
    readers = [info for place, infos in table.get("read", {}).items() if _overlap(path, Path(place)) for info in infos]
    return any(int(info["pid"]) != os.getpid() and psutil.pid_exists(int(info["pid"])) for info in readers)


def _overlap(first: Path, second: Path) -> bool:
    return first.is_relative_to(second) or second.is_relative_to(first)
