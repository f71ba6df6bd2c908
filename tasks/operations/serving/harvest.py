"""Preference pairs and thumbs from the log, each interaction once.

A harvest claims its interactions in the database before anything is made of them, and is marked done at the end: one
that died is finished first by the next, with the same interactions, and so with the same bytes.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import (
    Column,
    Connection,
    Engine,
    Integer,
    String,
    Table,
    Text,
    and_,
    exists,
    func,
    insert,
    select,
    update,
)

from plumbline.data_contracts.interactions import Interaction, InteractionFeedback
from plumbline.tasks.models.judging import Judgement
from plumbline.tasks.operations.serving.log import ANSWERS, FEEDBACK, INTERACTIONS, METADATA, stamp
from plumbline.tasks.storage.database import writing

Kind = Literal["judged", "thumbs"]
Row = dict[str, Any]

HARVESTS = Table(
    "serving_harvests",
    METADATA,
    Column("number", Integer, primary_key=True),
    Column("kind", String(20), nullable=False),
    Column("batch", String(300)),  # null until it is ingested; "" where no row came of it
)
HARVESTED = Table(
    "serving_harvested_interactions",
    METADATA,
    Column("request_id", String(200), primary_key=True),
    Column("number", Integer, nullable=False),
)
HARVESTED_THUMBS = Table(
    "serving_harvested_thumbs",
    METADATA,
    Column("feedback", Integer, primary_key=True, autoincrement=False),  # the thumb's number in the log
    Column("number", Integer, nullable=False),
)
TRIES = Table(
    "serving_harvest_tries",
    METADATA,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("tries", Integer, nullable=False),
)
SET_ASIDE = Table(
    "serving_harvest_set_aside",
    METADATA,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("request_id", String(200), primary_key=True),
    Column("reason", Text, nullable=False),
)


@dataclass(frozen=True, slots=True)
class Claim:
    """One harvest: its number, the ids of its interactions, sorted, and its thumbs as (request, kind, annotator)."""

    number: int
    ids: tuple[str, ...]
    thumbs: frozenset[tuple[str, str, str]] = frozenset()


def claim(engine: Engine, kind: Kind, most: int, since: datetime | None) -> Claim | None:
    """The harvest that was left unfinished, or a new one of what was never harvested; None if there is nothing.

    A thumb is claimed by itself: one that is given later, on the same answer, is of a later harvest.
    """
    with writing(engine) as connection:
        left = select(HARVESTS.c.number).where(HARVESTS.c.kind == kind, HARVESTS.c.batch.is_(None))
        number = connection.execute(left.order_by(HARVESTS.c.number)).scalar()
        if number is None:
            query = _unharvested(most, since) if kind == "judged" else _unharvested_thumbs(most, since)
            found = [row[0] for row in connection.execute(query)]
            if not found:
                return None
            number = int(connection.execute(select(func.coalesce(func.max(HARVESTS.c.number), 0) + 1)).scalar_one())
            connection.execute(insert(HARVESTS).values(number=number, kind=kind))
            table, column = (HARVESTED, "request_id") if kind == "judged" else (HARVESTED_THUMBS, "feedback")
            connection.execute(insert(table), [{column: item, "number": number} for item in found])
        return _claimed(connection, int(number), kind)


def failed_tries(engine: Engine, claimed: Claim) -> int:
    """Count one more failure of this harvest; say how many there were."""
    with writing(engine) as connection:
        before = connection.execute(select(TRIES.c.tries).where(TRIES.c.number == claimed.number)).scalar()
        if before is None:
            connection.execute(insert(TRIES).values(number=claimed.number, tries=1))
        else:
            connection.execute(update(TRIES).where(TRIES.c.number == claimed.number).values(tries=before + 1))
        return int(before or 0) + 1


def set_aside(engine: Engine, claimed: Claim, reasons: Mapping[str, str]) -> None:
    """Take interactions out of a harvest for good, each with the reason."""
    with writing(engine) as connection:
        for name, reason in reasons.items():
            connection.execute(insert(SET_ASIDE).values(number=claimed.number, request_id=name, reason=reason))


def settle(engine: Engine, claimed: Claim, batch: str) -> None:
    """Mark a harvest done."""
    with writing(engine) as connection:
        connection.execute(update(HARVESTS).where(HARVESTS.c.number == claimed.number).values(batch=batch))


def comparable(interaction: Interaction) -> str | None:
    """Why the two answers of an interaction make no pair, or None if they do."""
    if len(interaction.answers) < 2:
        return "one answer"
    if any(answer.finish_reason != "stop" for answer in interaction.answers):
        return "unfinished"
    texts = [answer.text.strip() for answer in interaction.answers]
    if not all(texts):
        return "empty"
    return "same" if texts[0] == texts[1] else None


def shown_order(interaction: Interaction) -> tuple[int, int]:
    """In which order a judge or a person sees the two answers: by the request id, so that neither side is favoured."""
    first = hashlib.sha256(f"order\n{interaction.id}".encode()).digest()[0] % 2
    return first, 1 - first


def judged_rows(
    found: Sequence[Interaction], judgements: Sequence[Judgement | None], judge: Mapping[str, Any], tie_margin: float
) -> tuple[list[Row], Counter[str]]:
    """A row in TRL's conversational format for each interaction that the judge could decide; and the counts."""
    rows, counts = [], Counter[str]()
    for interaction, judgement in zip(found, judgements, strict=True):
        lead = None if judgement is None else float(judgement.wins[0, 1]) - 0.5
        if lead is None or abs(lead) <= tie_margin:
            counts["unusable" if lead is None else "ties"] += 1
            continue
        order = shown_order(interaction)
        winner = order[0] if lead > 0 else order[1]
        rows.append(_judged_row(interaction, winner, judge))
        counts["pairs"] += 1
    return rows, counts


def labelling_rows(found: Sequence[Interaction]) -> list[Row]:
    """Rows for people to label (`a`, `b` or `tie`), as `plumbline ingest human_pairs` takes them back.

    They do not say which version wrote which answer. Left out are conversations with a system or tool turn, which that
    format cannot hold.
    """
    rows = []
    for interaction in found:
        if {turn.role for turn in interaction.prompt} <= {"user", "assistant"}:
            first, second = (interaction.answers[place].text for place in shown_order(interaction))
            speakers = {"user": "Human", "assistant": "Assistant"}
            turns = "".join(f"\n\n{speakers[turn.role]}: {turn.content}" for turn in interaction.prompt)
            uris = sorted(answer.model_uri for answer in interaction.answers)
            rows.append(
                {
                    "id": f"interaction-{interaction.id}",
                    "prompt": f"{turns}\n\nAssistant:",
                    "response_a": first,
                    "response_b": second,
                    "label": None,
                    "metadata": {"request_id": interaction.id, "model_uris": uris},
                }
            )
    return rows


def thumb_rows(
    found: Sequence[tuple[Interaction, Sequence[InteractionFeedback]]], thumbs: frozenset[tuple[str, str, str]]
) -> list[Row]:
    """A row for each of these thumbs on an answer that a user saw whole."""
    rows = []
    for interaction, feedback in found:
        answer = interaction.answers[0]
        for item in feedback:
            given = (interaction.id, item.kind, item.annotator or "") in thumbs
            if given and answer.finish_reason != "error" and answer.text.strip():
                rows.append(
                    {
                        "id": f"interaction-{interaction.id}-{item.annotator or 'user'}",
                        "prompt": [turn.model_dump() for turn in interaction.prompt],
                        "response": answer.text,
                        "thumb": "up" if item.kind == "thumb_up" else "down",
                        "annotator": item.annotator,
                        "timestamp": stamp(item.at),
                        "metadata": {"request_id": interaction.id, "model_uri": answer.model_uri},
                    }
                )
    return rows


def _judged_row(interaction: Interaction, winner: int, judge: Mapping[str, Any]) -> Row:
    chosen, rejected = interaction.answers[winner], interaction.answers[1 - winner]
    return {
        "id": f"interaction-{interaction.id}",
        "prompt": [turn.model_dump() for turn in interaction.prompt],
        "chosen": chosen.text,
        "rejected": rejected.text,
        "annotator": f"{judge['name']}:{judge['digest']}",
        "timestamp": stamp(interaction.received_at),
        "metadata": {
            "request_id": interaction.id,
            "chosen_model_uri": chosen.model_uri,
            "rejected_model_uri": rejected.model_uri,
            "seen_by_user": interaction.answers[0].model_uri,
            "judge": dict(judge),
        },
    }


def _claimed(connection: Connection, number: int, kind: Kind) -> Claim:
    aside = select(SET_ASIDE.c.request_id).where(SET_ASIDE.c.number == number)
    if kind == "judged":
        query = select(HARVESTED.c.request_id).where(HARVESTED.c.number == number)
        names = [str(row[0]) for row in connection.execute(query.where(HARVESTED.c.request_id.not_in(aside)))]
        return Claim(number, tuple(sorted(names)))
    thumbs = select(FEEDBACK.c.request_id, FEEDBACK.c.kind, FEEDBACK.c.annotator).where(
        HARVESTED_THUMBS.c.number == number,
        HARVESTED_THUMBS.c.feedback == FEEDBACK.c.seq,
        FEEDBACK.c.request_id.not_in(aside),
    )
    given = frozenset((str(row[0]), str(row[1]), str(row[2])) for row in connection.execute(thumbs))
    return Claim(number, tuple(sorted({name for name, _, _ in given})), given)


def _unharvested(most: int, since: datetime | None) -> Any:
    done = exists().where(HARVESTED.c.request_id == INTERACTIONS.c.id)
    ready = exists().where(and_(ANSWERS.c.request_id == INTERACTIONS.c.id, ANSWERS.c.position == 1))
    query = select(INTERACTIONS.c.id).where(~done, ready)
    if since is not None:
        query = query.where(INTERACTIONS.c.received_at >= stamp(since))
    return query.order_by(INTERACTIONS.c.received_at, INTERACTIONS.c.id).limit(most)


def _unharvested_thumbs(most: int, since: datetime | None) -> Any:
    done = exists().where(HARVESTED_THUMBS.c.feedback == FEEDBACK.c.seq)
    query = select(FEEDBACK.c.seq).where(
        ~done, FEEDBACK.c.kind.in_(("thumb_up", "thumb_down")), FEEDBACK.c.request_id == INTERACTIONS.c.id
    )
    if since is not None:
        query = query.where(INTERACTIONS.c.received_at >= stamp(since))
    return query.order_by(FEEDBACK.c.seq).limit(most)
