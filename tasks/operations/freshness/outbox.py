"""The outbox: events for the server, kept until the server has them.

A row is written in the same breath as what it announces and is marked when the server confirmed the
event; whatever dies between, the row stays and is sent again. The event's id follows from the
workspace and the key, so that sending twice is telling once, and two workspaces of one server that were
given the same batch send an event each.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Engine, Row, select, update

from plumbline.data_contracts.errors import OperationsError
from plumbline.tasks.storage.database import reading, writing
from plumbline.tasks.storage.database.outbox_tables import METADATA as METADATA
from plumbline.tasks.storage.database.outbox_tables import OUTBOX, WAITING, one_at_a_time, utc_now

Kind = Literal["batch", "finding"]

_NAMESPACE = uuid.UUID("6f1d4cde-58a5-5b6e-9a8d-0c6a3e0f7b41")
_LONGEST_KEY = 200


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    """One event to send: a new batch, or a finding of the monitor."""

    key: str
    kind: Kind
    subject: str
    payload: Mapping[str, Any]
    created_at: datetime
    event_id: str
    emitted_at: datetime | None


@dataclass(frozen=True, slots=True)
class EntryState:
    """An entry and how far admission has come with it."""

    entry: OutboxEntry
    state: str
    attempts: int
    due_from: datetime
    run_key: str | None
    note: str | None


def event_id(workspace: str, key: str) -> str:
    """The id of the event for a workspace's key: uuid5, always the same."""
    return str(uuid.uuid5(_NAMESPACE, f"{workspace}/{key}"))


def put(
    engine: Engine,
    *,
    kind: Kind,
    subject: str,
    payload: Mapping[str, Any],
    key: str,
    workspace: str = "",
    now: datetime | None = None,
) -> OutboxEntry:
    """Enter a key once; a key that is there stays as it was. Returns the entry that stands.

    `workspace` is the id that distinguishes this workspace from others on the same server.

    Raises `OperationsError`, also for a key that is empty or longer than 200 characters.
    """
    if not 0 < len(key) <= _LONGEST_KEY:
        raise OperationsError(
            f"outbox: expected a key of 1 to {_LONGEST_KEY} characters, found {len(key)}. Use a digest in it."
        )
    with writing(engine) as connection:
        one_at_a_time(connection)
        found = connection.execute(select(OUTBOX).where(OUTBOX.c.key == key)).first()
        if found is None:
            moment = now or utc_now()
            row = {
                "key": key,
                "kind": kind,
                "subject": subject,
                "payload": dict(payload),
                "created_at": moment,
                "event_id": event_id(workspace, key),
                "state": WAITING,
                "due_from": moment,
                "attempts": 0,
            }
            connection.execute(OUTBOX.insert().values(row))
            found = connection.execute(select(OUTBOX).where(OUTBOX.c.key == key)).one()
        return as_entry(found)


def pending(engine: Engine) -> list[OutboxEntry]:
    """Entries that the server has not confirmed, oldest first."""
    with reading(engine) as connection:
        query = select(OUTBOX).where(OUTBOX.c.emitted_at.is_(None)).order_by(OUTBOX.c.created_at, OUTBOX.c.key)
        return [as_entry(row) for row in connection.execute(query)]


def mark_emitted(engine: Engine, key: str) -> None:
    """Note that the server has the event. The first confirmation stands."""
    with writing(engine) as connection:
        unmarked = (OUTBOX.c.key == key) & OUTBOX.c.emitted_at.is_(None)
        connection.execute(update(OUTBOX).where(unmarked).values(emitted_at=utc_now()))


def entry_states(engine: Engine) -> list[EntryState]:
    """Every entry with its state, oldest first."""
    with reading(engine) as connection:
        rows = connection.execute(select(OUTBOX).order_by(OUTBOX.c.created_at, OUTBOX.c.key)).all()
    return [EntryState(as_entry(row), row.state, row.attempts, row.due_from, row.run_key, row.note) for row in rows]


def as_entry(row: Row[Any]) -> OutboxEntry:
    """A row of the table as an entry."""
    return OutboxEntry(row.key, row.kind, row.subject, row.payload, row.created_at, row.event_id, row.emitted_at)


def find(engine: Engine, key: str) -> OutboxEntry | None:
    """The entry of a key, or None."""
    with reading(engine) as connection:
        row = connection.execute(select(OUTBOX).where(OUTBOX.c.key == key)).first()
    return None if row is None else as_entry(row)
