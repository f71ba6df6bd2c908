"""Files that this user may not read or write, for people: which file, which permission, whose."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plumbline.data_contracts.errors import StageError

_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def permissions_as_errors() -> Iterator[None]:
    """Turn a refusal by the operating system's permissions inside the block into one `StageError` that names it."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DENIED or error.filename is None:
            raise
        raise StageError(explain_denied(error)) from error


def explain_denied(error: OSError) -> str:
    """Which file or folder refused, its permissions and what to do, in one line."""
    path = Path(os.fsdecode(error.filename)) if error.filename is not None else Path()
    if error.errno == errno.EROFS:
        return f"{path}: expected to write there, found a read-only file system. Choose another place to write."
    barrier, wanted = _barrier(path)
    return (
        f"{path}: no permission ({error.strerror}): user {os.geteuid()} may not {wanted} {barrier} "
        f"({_describe(barrier)}). Run it as that user, or let its owner give you access (a group, or `setfacl`)."
    )


def _barrier(path: Path) -> tuple[Path, str]:
    """The topmost part of a path that refuses, and what it refuses."""
    path = path.absolute()
    for folder in reversed(path.parents):
        if folder.is_dir() and not os.access(folder, os.X_OK):
            return folder, "enter"
    if not path.exists():
        return path.parent, "write into"
    if not os.access(path, os.R_OK):
        return path, "read"
    return path, "change"


def _describe(path: Path) -> str:
    try:
        found = path.stat()
    except OSError as error:
        return str(error.strerror)
    return f"mode {stat.S_IMODE(found.st_mode):04o} of user {found.st_uid}, group {found.st_gid}"
