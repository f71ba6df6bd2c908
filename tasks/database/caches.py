"""Where derived files go that can be made again: into the workspace, or beside it for who may not write there."""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path


def cache_folder(root: Path, name: Path) -> Path:
    """`name` in the workspace where it may be written, else a folder of this user's own for this workspace.

    That is `plumbline` in the user's cache folder (`$XDG_CACHE_HOME`, else `~/.cache`), or else a temporary one.
    """
    home = root / name
    nearest = home if home.exists() else root
    return home if may_write(nearest) else _own(root.resolve()) / name


def may_write(folder: Path) -> bool:
    """Whether this process may make files in a folder, by its effective user and the file system."""
    effective = os.access in os.supports_effective_ids
    return os.access(folder, os.W_OK | os.X_OK, effective_ids=effective)


@cache
def _own(root: Path) -> Path:
    name = f"{root.name[:40]}-{hashlib.sha256(os.fsencode(root)).hexdigest()[:16]}"
    given = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(given) / "plumbline" / name
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if may_write(folder):
            return folder
    except OSError:  # no home, or one that cannot be written: what is kept is made again by the next command
        pass
    scratch = Path(tempfile.mkdtemp(prefix="plumbline-cache-"))
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    return scratch
