"""Tables of fresh data: the outbox with the state of every key, and the runs that were started.

One operations database belongs to one workspace. Times are kept in UTC.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, Column, Connection, DateTime, Dialect, Integer, MetaData, String, Table, Text
from sqlalchemy import text as sql
from sqlalchemy.types import TypeDecorator

METADATA = MetaData()

WAITING, CLAIMED, SPENT, ABANDONED = "waiting", "claimed", "spent", "abandoned"
"""States of a key: no run has it; a run under way has it; a run that ended well had it; too many runs failed on it."""

_TURNSTILE = 0x504C554D  # any number that no other advisory lock of this database uses


class Utc(TypeDecorator[datetime]):
    """A moment in UTC; SQLite gives it back without its zone, which is then put back."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse a time without a zone: it could be any."""
        if value is None:
            return None
        assert value.tzinfo is not None, "a stored time needs a zone"
        return value.astimezone(UTC)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """The moment, with its zone."""
        if value is None:
            return None
        moment: datetime = value
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


OUTBOX = Table(
    "outbox",
    METADATA,
    Column("key", String(200), primary_key=True),
    Column("kind", String(20), nullable=False),
    Column("subject", Text, nullable=False),
    Column("payload", JSON, nullable=False),
    Column("created_at", Utc, nullable=False),
    Column("event_id", String(36), nullable=False, unique=True),
    Column("emitted_at", Utc),
    # what admission knows; `due_from` is created_at or the last failure, or later where the clock was set back
    Column("state", String(20), nullable=False),
    Column("due_from", Utc, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("run_key", String(36)),
    Column("note", Text),
)

RUNS = Table(
    "fresh_runs",
    METADATA,
    Column("run_key", String(36), primary_key=True),
    Column("claimed_keys", JSON, nullable=False),
    Column("reason", Text, nullable=False),
    Column("holder", JSON),
    Column("max_attempts", Integer, nullable=False),
    Column("started_at", Utc, nullable=False),
    Column("counted_at", Utc, nullable=False),  # started_at, unless the clock was set back behind it
    Column("finished_at", Utc),
    Column("outcome", String(20)),
    Column("model_uri", Text),
    Column("detail", Text),
)


def one_at_a_time(connection: Connection) -> None:
    """Order the transactions that decide, on Postgres; on SQLite `writing` has done so already."""
    if connection.dialect.name == "postgresql":
        connection.execute(sql(f"SELECT pg_advisory_xact_lock({_TURNSTILE})"))


def utc_now() -> datetime:
    """The present moment in UTC."""
    return datetime.now(UTC)
