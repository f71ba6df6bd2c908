"""Places for derived files that can be made again: in the workspace, or beside it for who may not write there."""

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
    """True if this process may make files in a folder, by its effective user and the file system."""
    effective = os.access in os.supports_effective_ids
    return os.access(folder, os.W_OK | os.X_OK, effective_ids=effective)


def _own(root: Path) -> Path:
    return own_folder(f"{root.name[:40]}-{hashlib.sha256(os.fsencode(root)).hexdigest()[:16]}")


@cache
def own_folder(name: str) -> Path:
    """`name` in this user's own cache folder, which nobody else may write, or else a temporary one."""
    kept = kept_folder(name)
    if kept is not None:
        return kept
    scratch = Path(tempfile.mkdtemp(prefix="plumbline-cache-"))
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    return scratch


def kept_folder(name: str) -> Path | None:
    """`name` in this user's own cache folder; None without a home, or with one that cannot be written.

    What is kept there is then made again by the next command.
    """
    given = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(given) / "plumbline" / name
    try:
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.mkdir(exist_ok=True, mode=0o700)
    except OSError:
        return None
    return folder if may_write(folder) and _is_ours(folder) else None


def _is_ours(folder: Path) -> bool:
    found = folder.stat()
    return found.st_uid == os.geteuid() and not found.st_mode & 0o022
