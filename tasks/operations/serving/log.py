"""The log of what was answered: interactions and feedback in the operations database, under their contract.

An interaction is written once its user has the answer, and once more when a mirrored answer is there: the second
writing adds the answer. Readers see whole interactions, oldest first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

import orjson
from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    Engine,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    and_,
    delete,
    insert,
    or_,
    select,
)

from plumbline.data_contracts.interactions import Interaction, InteractionFeedback, ServedCompletion
from plumbline.data_contracts.records import Message
from plumbline.tasks.storage.database import reading, writing

METADATA = MetaData()

INTERACTIONS = Table(
    "serving_interactions",
    METADATA,
    Column("id", String(200), primary_key=True),
    Column("received_at", String(32), nullable=False),  # UTC, ISO 8601 to the microsecond: it sorts as text
    Column("prompt", Text, nullable=False),
    Column("canary", Boolean, nullable=False),
    Column("user_key", String(32)),  # a pseudonym; null if none was named, and in logs of contract v1
    Index("serving_interactions_by_time", "received_at", "id"),
)
ANSWERS = Table(
    "serving_answers",
    METADATA,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("request_id", String(200), nullable=False),
    Column("position", Integer, nullable=False),  # 0: what the user saw
    Column("side", String(20), nullable=False),
    Column("model_uri", String(300), nullable=False),
    Column("text", Text, nullable=False),
    Column("tokens", Integer, nullable=False),
    Column("latency_ms", Float, nullable=False),
    Column("first_token_ms", Float),
    Column("finish_reason", String(20), nullable=False),
    Column("refusal", Boolean, nullable=False),
    Column("violation", Boolean, nullable=False),
    Column("error", Text),
    UniqueConstraint("request_id", "position"),
)
FEEDBACK = Table(
    "serving_feedback",
    METADATA,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("request_id", String(200), nullable=False),
    Column("kind", String(20), nullable=False),
    Column("annotator", String(200), nullable=False),  # "" if nobody is named
    Column("at", String(32), nullable=False),
    UniqueConstraint("request_id", "kind", "annotator"),
)

_PAGE = 500
_ANSWER_FIELDS = tuple(ServedCompletion.model_fields)


def record(engine: Engine, interaction: Interaction) -> None:
    """Write an interaction, or add the answer that a mirrored one did not have yet. Writing it again changes nothing.

    Raises `OperationsError`.
    """
    record_all(engine, [interaction])


def record_all(engine: Engine, batch: Sequence[Interaction]) -> int:
    """`record` for many, in one transaction; say how many had an id that another interaction had before.

    Those are kept under `ID.DIGEST`: nothing that was answered is lost, or overwritten.
    """
    with writing(engine) as connection:
        return sum(_record(connection, interaction) for interaction in batch)


def add_feedback(engine: Engine, feedback: InteractionFeedback) -> bool:
    """Keep what a user did; the same kind by the same annotator counts once. False for an unknown request."""
    key = (_text(feedback.request_id), feedback.kind, _text(feedback.annotator or ""))
    with writing(engine) as connection:
        known = select(INTERACTIONS.c.id).where(INTERACTIONS.c.id == key[0])
        if connection.execute(known).first() is None:
            return False
        row = dict(zip(("request_id", "kind", "annotator"), key, strict=True))
        if not _has(connection, FEEDBACK, **row):
            connection.execute(insert(FEEDBACK).values(at=stamp(feedback.at), **row))
    return True


def interactions(
    engine: Engine, *, since: datetime | None = None, until: datetime | None = None
) -> Iterator[tuple[Interaction, tuple[InteractionFeedback, ...]]]:
    """Every interaction received from `since` on and before `until`, oldest first, with its feedback."""
    after = ("", "")
    while True:
        page = select(INTERACTIONS).order_by(INTERACTIONS.c.received_at, INTERACTIONS.c.id).limit(_PAGE)
        at, name = INTERACTIONS.c.received_at, INTERACTIONS.c.id
        page = page.where(or_(at > after[0], and_(at == after[0], name > after[1])))
        if since is not None:
            page = page.where(at >= stamp(since))
        if until is not None:
            page = page.where(at < stamp(until))
        with reading(engine) as connection:
            rows = connection.execute(page).mappings().all()
            found = _complete(connection, rows)
        yield from found
        if len(rows) < _PAGE:
            return
        after = (rows[-1]["received_at"], rows[-1]["id"])


def some_interactions(engine: Engine, ids: Sequence[str]) -> list[tuple[Interaction, tuple[InteractionFeedback, ...]]]:
    """The interactions of these ids, oldest first."""
    found = []
    with reading(engine) as connection:
        for start in range(0, len(ids), _PAGE):
            part = select(INTERACTIONS).where(INTERACTIONS.c.id.in_(ids[start : start + _PAGE]))
            found += _complete(connection, connection.execute(part).mappings().all())
    return sorted(found, key=lambda item: (item[0].received_at, item[0].id))


def remove(engine: Engine, ids: Sequence[str]) -> None:
    """Delete interactions with their answers and feedback, for an erasure. Repeating it is free."""
    with writing(engine) as connection:
        for start in range(0, len(ids), _PAGE):
            part = ids[start : start + _PAGE]
            for table in (ANSWERS, FEEDBACK):
                connection.execute(delete(table).where(table.c.request_id.in_(part)))
            connection.execute(delete(INTERACTIONS).where(INTERACTIONS.c.id.in_(part)))


def remove_feedback_of(engine: Engine, annotator: str) -> None:
    """Delete what this person thought of answers, for an erasure. Repeating it is free."""
    with writing(engine) as connection:
        connection.execute(delete(FEEDBACK).where(FEEDBACK.c.annotator == annotator))


def stamp(moment: datetime) -> str:
    """A moment as text that sorts by time; one without a zone is taken as UTC."""
    aware = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return aware.isoformat(timespec="microseconds")


def _record(connection: Connection, interaction: Interaction) -> int:
    name, clash = interaction.id, 0
    known = connection.execute(select(INTERACTIONS).where(INTERACTIONS.c.id == name)).mappings().first()
    row = _row(interaction)
    if known is not None and dict(known) != row:
        digest = hashlib.sha256(orjson.dumps(row, option=orjson.OPT_SORT_KEYS)).hexdigest()
        name, clash = f"{name[:183]}.{digest[:16]}", 1
        row["id"] = name
        known = connection.execute(select(INTERACTIONS.c.id).where(INTERACTIONS.c.id == name)).mappings().first()
    if known is None:
        connection.execute(insert(INTERACTIONS).values(**row))
    for position, answer in enumerate(interaction.answers):
        if not _has(connection, ANSWERS, request_id=name, position=position):
            values = answer.model_dump() | {"text": _text(answer.text), "error": answer.error and _text(answer.error)}
            connection.execute(insert(ANSWERS).values(request_id=name, position=position, **values))
    return clash


def _text(text: str) -> str:
    """Text as Postgres can hold it: with U+FFFD for NUL, which its drivers refuse."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def _row(interaction: Interaction) -> dict[str, Any]:
    turns = [[message.role, message.content] for message in interaction.prompt]
    return {
        "id": interaction.id,
        "received_at": stamp(interaction.received_at),
        "prompt": orjson.dumps(turns).decode(),
        "canary": interaction.canary,
        "user_key": interaction.user,
    }


def _has(connection: Connection, table: Table, **key: Any) -> bool:
    query = select(table.c.seq).where(*(table.c[name] == value for name, value in key.items()))
    return connection.execute(query).first() is not None


def _complete(connection: Connection, rows: Sequence[Any]) -> list[tuple[Interaction, tuple[InteractionFeedback, ...]]]:
    """Interactions of these rows with their answers and feedback, checked against the contract."""
    names = [row["id"] for row in rows]
    answers = _by_request(connection, ANSWERS, names, "position")
    feedback = _by_request(connection, FEEDBACK, names, "seq")
    return [
        (
            Interaction(
                id=row["id"],
                received_at=datetime.fromisoformat(row["received_at"]),
                prompt=tuple(Message(role=role, content=content) for role, content in orjson.loads(row["prompt"])),
                canary=row["canary"],
                user=row["user_key"],
                answers=tuple(
                    ServedCompletion(**{name: item[name] for name in _ANSWER_FIELDS}) for item in answers[row["id"]]
                ),
            ),
            tuple(_feedback(item) for item in feedback.get(row["id"], ())),
        )
        for row in rows
        if row["id"] in answers
    ]


def _feedback(row: Any) -> InteractionFeedback:
    return InteractionFeedback(
        request_id=row["request_id"],
        kind=row["kind"],
        at=datetime.fromisoformat(row["at"]),
        annotator=row["annotator"] or None,
    )


def _by_request(connection: Connection, table: Table, names: Iterable[str], order: str) -> dict[str, list[Any]]:
    query = select(table).where(table.c.request_id.in_(list(names))).order_by(table.c.request_id, table.c[order])
    rows = connection.execute(query).mappings().all()
    return {name: list(group) for name, group in groupby(rows, key=lambda row: str(row["request_id"]))}
