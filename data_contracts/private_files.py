"""File modes of a workspace: for its owner alone, or for the owner's group if the owner says so.

Everything that holds prompts, feedback, traffic, or models trained on them lies in the folders named in `PRIVATE`:
files of mode 0600 in folders of mode 0700. Each process sets its umask to that when it starts, whatever umask it was
given, so that every library's files have it too.

The mode of `.plumbline` says which it is. `plumbline init` makes it 0700: private. An owner who gives it to a group
(0750, or 0770, and nothing to others) shares the workspace: what is written from then on is the group's to read as
well, and nothing that the group was given is taken away again. Others never get anything.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

PRIVATE = ("data", "models", "reports", ".plumbline", ".dvc/cache", ".dvc/tmp", ".dvc/config.local")
"""Folders and files of a workspace that others have no business in. Git keeps none of them."""

HOME = ".plumbline"
_OTHERS = 0o007
_NOT_OWNER = 0o077
_LISTED = 0o044


def workspace_umask(root: Path | None) -> int:
    """The umask for new files: all that is not the owner's, or as much as the mode of `.plumbline` lacks."""
    mode = _mode(root / HOME) if root is not None else None
    if mode is None or mode & _OTHERS or mode & 0o050 != 0o050:
        return _NOT_OWNER
    return ~mode & _NOT_OWNER


def keep_private(root: Path | None = None) -> None:
    """Set the umask of this process, and of what it starts, for a workspace; without one, to the owner alone."""
    os.umask(workspace_umask(root))


def make_private(folder: Path) -> None:
    """Make a folder that its owner alone enters, and its parents; one that is there stays as it is."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)


def make_private_file(path: Path, root: Path) -> None:
    """Make an empty file that only those read who may read the workspace, if there is none."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666 & ~workspace_umask(root)))


def open_to_others(root: Path, inbox: Path | None = None) -> list[Path]:
    """Files and folders of a workspace that more people may read or change than should, links left out."""
    return [path for path, _ in _open_ones(root, inbox)]


def close_to_others(root: Path, inbox: Path | None = None) -> tuple[list[Path], list[Path]]:
    """Take from group and others what they should not have. Returns what was mended, and what belongs to another user.

    Permissions are only ever taken away.
    """
    mended: list[Path] = []
    left: list[Path] = []
    for path, mode in list(_open_ones(root, inbox)):
        (mended if _change_mode(path, mode) else left).append(path)
    return mended, left


def _open_ones(root: Path, inbox: Path | None) -> Iterator[tuple[Path, int]]:
    """Each path that is too open, and the mode that it should have."""
    mask = workspace_umask(root)
    for path in _walk([root / name for name in PRIVATE]):
        mode = _mode(path)
        if mode is not None and mode & mask:
            yield path, mode & ~mask
    for path in _walk([inbox] if inbox is not None else []):
        mode = _mode(path)
        if mode is not None and mode & mask and not _takes_in(path, mode, inbox):
            yield path, mode & ~mask


def _takes_in(path: Path, mode: int, inbox: Path | None) -> bool:
    """True if it is a folder into which others may drop files without seeing what is there (0733, 0730)."""
    visible = inbox is not None and not any(part.startswith(".") for part in path.relative_to(inbox).parts)
    return visible and path.is_dir() and not mode & _LISTED


def _walk(starts: Sequence[Path]) -> Iterator[Path]:
    for start in starts:
        if start.is_symlink() or not start.exists():
            continue
        yield start
        for folder, folders, files in os.walk(start):
            for name in (*folders, *files):
                path = Path(folder, name)
                if not path.is_symlink():
                    yield path


def _mode(path: Path) -> int | None:
    """Mode of a file or folder; None for what is neither, or gone."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return None
    return stat.S_IMODE(mode) if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else None


def _change_mode(path: Path, mode: int) -> bool:
    """True if the mode could be changed. Never through a link: someone else may have put one there meanwhile."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        os.fchmod(descriptor, mode)
    except PermissionError:
        return False
    finally:
        os.close(descriptor)
    return True
