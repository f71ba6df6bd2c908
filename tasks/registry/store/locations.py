"""Places of the artifacts of the workspace's own MLflow store: always below it, also after it was moved.

MLflow's SQLite store keeps absolute `file://` locations. A reader takes the part after the workspace from them and
looks there in its own workspace (`rebased`). A writer first rewrites all of them in one transaction (`settle`), so that
MLflow itself, its UI included, writes to the right place. A store that params name is used as it is.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from plumbline.data_contracts.errors import RegistryError
from plumbline.tasks.storage.database.location import ARTIFACTS, local_path, workspace_part
from plumbline.tasks.storage.database.sqlite import connect_for_reading

COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Columns of MLflow's tables that hold locations; a test finds those that a new MLflow adds."""

_BUSY_S = 60.0
_UNUSED = "/mlruns/0"  # MLflow's own default experiment, named after the folder in which its database was made


def rebased(location: str, root: Path) -> str:
    """A location of the workspace's own store as it is now; what names no artifacts of a workspace stays as it is."""
    path = local_path(location)
    cut = workspace_part(path, ARTIFACTS) if path is not None else None
    if cut is None or cut[0] == str(root):
        return location
    moved = Path(root, cut[1])
    return moved.as_uri() if location.startswith("file:") else str(moved)


def require_inside(location: str, root: Path) -> str:
    """The location as it is now. Raises `RegistryError` if it leads out of the artifacts of the workspace.

    Links are followed: a name inside that leads outside is refused. A location on another machine is no path.
    """
    now = rebased(location, root)
    path = local_path(now)
    if path is not None and not Path(path).resolve().is_relative_to((root / ARTIFACTS).resolve()):
        raise RegistryError(
            f"{location}: expected artifacts under {root / ARTIFACTS}, found a place outside of it; nothing "
            f"was read or written there. Find out who changed it in MLflow, or name that store in "
            f"registry.tracking_uri."
        )
    return now


def settle(database: Path, root: Path) -> bool:
    """Rewrite locations of another workspace to this one, all or none. Says if there were any.

    The experiments, few as they are, tell without reading the rest: one transaction rewrites everything.
    """
    if not _is_elsewhere(database, root):
        return False
    with closing(sqlite3.connect(database, timeout=_BUSY_S, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        for table, column in _present(connection):
            name = f"{table}.{column}"
            for old, new in _changes(connection, table, column, root):
                connection.execute(f"UPDATE {table} SET {column} = ? WHERE {name} = ?", (new, old))
        connection.execute("COMMIT")
    return True


def _is_elsewhere(database: Path, root: Path) -> bool:
    with closing(connect_for_reading(database)) as connection:
        if ("experiments", "artifact_location") not in _present(connection):
            return False
        return any(True for _ in _changes(connection, "experiments", "artifact_location", root))


def _present(connection: sqlite3.Connection) -> list[tuple[str, str]]:
    """The columns that this revision of MLflow's schema has."""
    return [
        (table, column)
        for table, column in COLUMNS
        if column in {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
    ]


def _changes(connection: sqlite3.Connection, table: str, column: str, root: Path) -> Iterator[tuple[str, str]]:
    query = f"SELECT DISTINCT {column} FROM {table} WHERE {column} IS NOT NULL"
    for (old,) in connection.execute(query).fetchall():
        new = rebased(old, root)
        if table == "experiments" and old.endswith(_UNUSED) and local_path(old) is not None:
            new = (root / ARTIFACTS / "0").as_uri()
        if new != old:
            yield old, new
