"""Files that hold a secret: mode 0600 in a folder of mode 0700, never readable by others, not for a moment."""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
from pathlib import Path

from plumbline.data_contracts.artifact import write_synced
from plumbline.data_contracts.errors import UsageError


def write_secret(path: Path, data: bytes) -> None:
    """Replace the file. Its folder is made where missing, and closed to others."""
    draft = _draft(path, data)
    os.replace(draft, path)


def make_secret(path: Path, data: bytes) -> bytes:
    """Make the file unless it is there; returns what it then holds. Of two at once, one makes it."""
    draft = _draft(path, data)
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()
    return read_secret(path) or b""


def _draft(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.parent.chmod(0o700)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # mode 0600
    try:
        write_synced(handle, data)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return Path(name)


def read_secret(path: Path) -> bytes | None:
    """The content; None if there is no such file. Raises `UsageError` if another user may read it, or owns it."""
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            data = file.read()
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise UsageError(f"{path}: expected a file that this user can read, found {error.strerror}.") from error
    if stat.S_IMODE(found.st_mode) & 0o077 or found.st_uid not in (os.geteuid(), os.getuid()):
        raise UsageError(
            f"{path}: expected a file of this user that only its owner can read, found mode "
            f"{stat.S_IMODE(found.st_mode):o} of user {found.st_uid}. If others may have read it, remove it and run "
            f"the command again for a new one; else `chmod 600` it."
        )
    return data


def random_secret() -> str:
    """256 random bits, in characters that need no quoting anywhere."""
    return secrets.token_urlsafe(32)
