"""SQLite files that are read and never written: by another user, on a read-only mount, beside a running writer.

A database with a write-ahead log needs its `-shm` file, which a reader without write access cannot make. So, in order:

1. `mode=rw` with `query_only`, if there is no `-wal` (or an empty one) and the reader may write: the other kind
   leaves the `-wal` and `-shm` that it makes, this one removes them when it is closed;
2. `mode=ro`: works where the journal is none of that kind, or a writer is at work and its `-shm` is readable;
3. `immutable=1`, if there is no `-wal` (or an empty one): nobody has it open, and the file is all there is;
4. a copy in a temporary folder, with its log: taken again until no file of it changed meanwhile.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import weakref
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from plumbline.data_contracts.errors import OperationsError, UsageError
from plumbline.data_contracts.permissions import explain_denied

_BUSY_S = 30.0
_TRIES = 20
_SIDES = ("", "-wal", "-journal")


class ReadingConnection(sqlite3.Connection):
    """A connection whose private copy of the database, if it needed one, goes when it is closed."""

    def keep_until_closed(self, folder: tempfile.TemporaryDirectory[str]) -> None:
        """Remove the folder with the connection."""
        self._finalize = weakref.finalize(self, folder.cleanup)

    def close(self) -> None:
        """Close, and remove the copy."""
        super().close()
        finalize = getattr(self, "_finalize", None)
        if finalize is not None:
            finalize()


def connect_for_reading(path: Path) -> ReadingConnection:
    """A connection that cannot write. Raises `OperationsError` when the file cannot be read."""
    for options in ("mode=rw", "mode=ro", "immutable=1"):
        if options == "mode=ro" or not _has_log(path):
            connection = _connect(path, options) if options != "mode=rw" or _may_write(path) else None
            if connection is not None:
                return connection
    require_readable(path)
    folder = tempfile.TemporaryDirectory(prefix="plumbline-read-", ignore_cleanup_errors=True)
    connection = _connect(copy_files(path, Path(folder.name)), "mode=rw")
    if connection is None:
        folder.cleanup()
        raise OperationsError(f"{path}: expected an SQLite database, found a file that cannot be opened as one.")
    connection.keep_until_closed(folder)
    return connection


def sqlite_url(path: Path) -> str:
    """The URL of an SQLite file as SQLAlchemy and MLflow read it. Raises `UsageError` if it would name another."""
    if "?" in str(path):
        raise UsageError(
            f"{path}: expected a folder whose name a database's URL can hold, found a question mark in it. Choose "
            f"another name for the workspace."
        )
    return f"sqlite:///{path}"


def copy_database(path: Path, to: Path) -> Path:
    """A whole copy of a database by SQLite's backup API, consistent beside running writers; returns `to`."""
    with closing(connect_for_reading(path)) as source, closing(sqlite3.connect(to)) as target:
        source.backup(target)
    return to


def copy_files(path: Path, folder: Path) -> Path:
    """A copy of a database's files as they lie there, when none of them changed while they were copied."""
    for _ in range(_TRIES):
        before = _stamps(path)
        for side in before:
            shutil.copyfile(f"{path}{side}", folder / f"{path.name}{side}")
        if _stamps(path) == before:
            return folder / path.name
    raise OperationsError(f"{path}: it was written to during each of {_TRIES} attempts to read it. Try again.")


def require_readable(path: Path) -> None:
    """Raise `OperationsError` if the file, or one of its logs, may not be read.

    Only for a file that SQLite could not open: closing one that this process has open drops SQLite's locks on it.
    """
    for side in _SIDES:
        file = Path(f"{path}{side}")
        try:
            with file.open("rb"):
                pass
        except FileNotFoundError:
            if not side:
                raise OperationsError(f"{path}: expected an SQLite database, found no file.") from None
        except PermissionError as error:
            raise OperationsError(explain_denied(error)) from error


def _connect(path: Path, options: str) -> ReadingConnection | None:
    connection = sqlite3.connect(
        f"file:{quote(os.fspath(path.absolute()))}?{options}",
        uri=True,
        timeout=_BUSY_S,
        check_same_thread=False,
        factory=ReadingConnection,
    )
    try:
        connection.execute("PRAGMA query_only=1")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        connection.close()
        if "locked" in str(error):
            raise
        return None
    except sqlite3.DatabaseError:
        connection.close()
        raise
    return connection


def _may_write(path: Path) -> bool:
    return os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)


def _has_log(path: Path) -> bool:
    logs = (Path(f"{path}{side}") for side in _SIDES[1:])
    return any(log.exists() and log.stat().st_size for log in logs)


def _stamps(path: Path) -> dict[str, tuple[int, int, int]]:
    found = {}
    for side in _SIDES:
        file = Path(f"{path}{side}")
        if file.exists():
            state = file.stat()
            found[side] = (state.st_ino, state.st_size, state.st_mtime_ns)
    return found


def compact(path: Path) -> None:
    """Rewrite a database without what its deleted rows left in free pages and in the log beside it.

    Raises `OperationsError` while another process has it in use.
    """
    try:
        with closing(sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)) as connection:
            connection.execute("VACUUM")
            busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    except sqlite3.OperationalError as error:
        raise OperationsError(f"{path}: cannot be compacted: {error}. Stop what uses it (`plumbline down`).") from error
    if busy:
        raise OperationsError(
            f"{path}: another process reads it. Stop what uses it (`plumbline down`), then run again."
        )
