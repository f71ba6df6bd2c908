"""The spool: accepted requests, durable before they are answered, until their rows are a batch of the raw store.

A SQLite file of its own, written by one process. A request, its rows and its answer are one transaction,
synced to disk; so an Idempotency-Key has an answer if and only if its rows are kept.

Rows leave in seals. `freeze` fixes the rows of a seal for good; then the seal is written, ingested and
announced, and `done` removes the rows. After a crash the same seal is written again, byte for byte, and the raw
store knows the batch by its digest: every row lands exactly once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    Column,
    Connection,
    Engine,
    Float,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    delete,
    func,
    select,
    update,
)

from plumbline.tasks.params.operations import OperationsParams
from plumbline.tasks.storage.database import open_database, reading, writing

METADATA = MetaData()
REQUESTS = Table(
    "requests",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("client", String(80), nullable=False),
    Column("source", String(80), nullable=False),
    Column("key", String(255), nullable=False),
    Column("body_sha256", String(64), nullable=False),
    Column("status", Integer, nullable=False),
    Column("answer", JSON, nullable=False),
    Column("at", Float, nullable=False, index=True),  # seconds since 1970
    UniqueConstraint("client", "source", "key"),
)
SEALS = Table(
    "seals",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("source", String(80), nullable=False),
    Column("rows", Integer, nullable=False),
    Column("at", Float, nullable=False),
    Column("batch", String(300)),  # set when done
)
ROWS = Table(
    "rows",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("source", String(80), nullable=False),
    Column("seal", Integer, index=True),
    Column("text", LargeBinary, nullable=False),
    Column("client", String(80)),  # null in rows that an earlier version took
    Column("at", Float, nullable=False),
)


@dataclass(frozen=True, slots=True)
class IntakeReply:
    """The answer to a request. `replayed`: it was answered before."""

    status: int
    body: Mapping[str, Any]
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Taken:
    """A request to keep: who sent it under which key, the digest of what was sent, rows to keep and the answer."""

    client: str
    source: str
    key: str
    body_sha256: str
    rows: Sequence[bytes]
    answer: IntakeReply


@dataclass(frozen=True, slots=True)
class Seal:
    """Rows that belong together for good: the content of one batch."""

    number: int
    source: str
    rows: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """Accepted rows of one kind that are in no seal yet, and the age of the oldest in seconds."""

    source: str
    rows: int
    age_s: float


def open_spool(folder: Path) -> Engine:
    """The spool of a workspace, `spool.db` in the folder."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    params = OperationsParams(database=f"sqlite:///{folder.resolve() / 'spool.db'}")
    return open_database(folder, params, METADATA)


def known(engine: Engine, keys: Iterable[tuple[str, str, str]]) -> list[tuple[str, IntakeReply] | None]:
    """For each client, source and key the digest and the answer of the request that has it, or None."""
    with reading(engine) as connection:
        return [_known(connection, *key) for key in keys]


def keep(engine: Engine, taken: Sequence[Taken]) -> list[tuple[str, IntakeReply]]:
    """Keep requests in one transaction; returns the digest and answer that stand for each key.

    A key that is there already, from before or from earlier in the list, keeps its first request.
    """
    with writing(engine) as connection:
        return [_keep(connection, request) for request in taken]


def waiting(engine: Engine) -> list[Waiting]:
    """Rows to seal, by kind of feedback."""
    query = select(ROWS.c.source, func.count().label("rows"), func.min(ROWS.c.at).label("oldest"))
    with reading(engine) as connection:
        rows = connection.execute(query.where(ROWS.c.seal.is_(None)).group_by(ROWS.c.source)).all()
    return [Waiting(row.source, row.rows, _age(row.oldest)) for row in rows]


def _age(at: float) -> float:
    """Seconds since then; for ever, where the clock went back meanwhile: such rows are due at once."""
    age = _now() - at
    return age if age >= 0 else math.inf


def freeze(engine: Engine, source: str) -> Seal | None:
    """Put every row of a kind that is in no seal into a new one; None if there is none."""
    with writing(engine) as connection:
        loose = (ROWS.c.source == source) & ROWS.c.seal.is_(None)
        count = connection.execute(select(func.count()).select_from(ROWS).where(loose)).scalar_one()
        if count == 0:
            return None
        made = connection.execute(SEALS.insert().values(source=source, rows=count, at=_now()))
        number = int(made.lastrowid)
        connection.execute(update(ROWS).where(loose).values(seal=number))
    return Seal(number, source, count)


def unfinished(engine: Engine) -> list[Seal]:
    """Seals that are frozen and not done, oldest first."""
    with reading(engine) as connection:
        rows = connection.execute(select(SEALS).where(SEALS.c.batch.is_(None)).order_by(SEALS.c.id)).all()
    return [Seal(row.id, row.source, row.rows) for row in rows]


def write_seal(engine: Engine, seal: Seal, path: Path) -> None:
    """Write the rows of a seal as JSON lines, in the order accepted: the same bytes every time."""
    with reading(engine) as connection, path.open("wb") as file:
        for row in connection.execute(select(ROWS.c.text).where(ROWS.c.seal == seal.number).order_by(ROWS.c.id)):
            file.write(row.text + b"\n")


def senders(engine: Engine, seal: Seal) -> list[str | None]:
    """The sender of each row of a seal, in the order in which it is written; None if nobody noted it."""
    with reading(engine) as connection:
        found = connection.execute(select(ROWS.c.client).where(ROWS.c.seal == seal.number).order_by(ROWS.c.id))
        return list(found.scalars())


def done(engine: Engine, seal: Seal, batch: str, *, keep_s: float, keep: int) -> None:
    """Note the batch that a seal became, remove its rows, and forget requests answered longer ago than `keep_s`.

    The newest `keep` requests are not forgotten: the clock may have jumped, but ids only count up.
    """
    newest = select(func.max(REQUESTS.c.id)).scalar_subquery()
    forgotten = (REQUESTS.c.at < _now() - keep_s) & (REQUESTS.c.id <= newest - keep)
    with writing(engine) as connection:
        connection.execute(update(SEALS).where(SEALS.c.id == seal.number).values(batch=batch))
        connection.execute(delete(ROWS).where(ROWS.c.seal == seal.number))
        connection.execute(delete(REQUESTS).where(forgotten))


def _keep(connection: Connection, request: Taken) -> tuple[str, IntakeReply]:
    found = _known(connection, request.client, request.source, request.key)
    if found is not None:
        return found
    moment = _now()
    connection.execute(
        REQUESTS.insert().values(
            client=request.client,
            source=request.source,
            key=request.key,
            body_sha256=request.body_sha256,
            status=request.answer.status,
            answer=dict(request.answer.body),
            at=moment,
        )
    )
    if request.rows:
        sent = {"source": request.source, "client": request.client, "at": moment}
        rows = [{**sent, "text": text} for text in request.rows]
        connection.execute(ROWS.insert(), rows)
    return request.body_sha256, request.answer


def _known(connection: Connection, client: str, source: str, key: str) -> tuple[str, IntakeReply] | None:
    mine = (REQUESTS.c.client == client) & (REQUESTS.c.source == source) & (REQUESTS.c.key == key)
    row = connection.execute(select(REQUESTS).where(mine)).first()
    return None if row is None else (row.body_sha256, IntakeReply(row.status, row.answer, replayed=True))


def _now() -> float:
    return datetime.now(UTC).timestamp()
