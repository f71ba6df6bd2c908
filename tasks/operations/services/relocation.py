"""Prefect's own database in a workspace that was moved or copied: its deployments work here, not where they were made.

Deployments, schedules, automations and runs that wait name the workspace by its path and by the id made from it. A
copy whose server kept them would start runs in the original. Past events, logs and states stay as they are.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

from plumbline.tasks.storage.database.sqlite import connect_for_reading

_PAST = {"events", "event_resources", "log", "flow_run_state", "task_run", "task_run_state", "artifact"}
_BUSY_S = 60.0


def database_of(root: Path) -> Path:
    """The SQLite database of the Prefect server that `plumbline up` starts."""
    return root / ".plumbline" / "prefect" / "prefect.db"


def names_another(root: Path, renamed: Mapping[str, str]) -> bool:
    """True if the database still names one of the old paths or ids."""
    if not renamed or not database_of(root).is_file():
        return False
    with closing(connect_for_reading(database_of(root))) as connection:
        for table, column in _texts(connection):
            for old in _spellings(renamed):
                query = f'SELECT 1 FROM "{table}" WHERE instr("{column}", ?) LIMIT 1'
                if connection.execute(query, (old,)).fetchone():
                    return True
    return False


def rename_in_prefect(root: Path, renamed: Mapping[str, str]) -> None:
    """Put new paths and ids in place of old ones, all or none. Call while no server has the database open."""
    with closing(sqlite3.connect(database_of(root), timeout=_BUSY_S, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        for table, column in _texts(connection):
            for old, new in _spellings(renamed).items():
                change = f'UPDATE "{table}" SET "{column}" = replace("{column}", ?, ?) WHERE instr("{column}", ?)'
                connection.execute(change, (old, new, old))
        connection.execute("COMMIT")


def _texts(connection: sqlite3.Connection) -> Iterator[tuple[str, str]]:
    for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        if table in _PAST or table.startswith("sqlite_"):
            continue
        for row in connection.execute(f'PRAGMA table_info("{table}")').fetchall():
            if row[2].upper().startswith(("JSON", "TEXT", "VARCHAR")):
                yield table, str(row[1])


def _spellings(renamed: Mapping[str, str]) -> dict[str, str]:
    """A path as whole JSON strings and as their beginnings, in both ways to spell what is not ASCII; an id as it is."""
    found = {}
    for old, new in renamed.items():
        if not old.startswith("/"):
            found[old] = new
            continue
        for ascii_only in (True, False):
            before, after = (json.dumps(text, ensure_ascii=ascii_only)[:-1] for text in (old, new))
            found |= {f'{before}"': f'{after}"', f"{before}/": f"{after}/"}
    return found
