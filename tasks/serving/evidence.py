"""What the log says of the answers that users had from one version: counted once, then only what is new.

Answers and thumbs are numbered as they are written, and neither ever changes. Those a good way back are counted for
good; the newest are counted anew at each look, because servers that share a database may commit out of order.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from sqlalchemy import Column, Connection, Engine, Select, and_, case, exists, func, or_, select
from sqlalchemy.sql.elements import ColumnElement

from tasks.database import reading
from tasks.serving.collect import LEFT
from tasks.serving.log import ANSWERS, FEEDBACK, INTERACTIONS

TAIL = 1000
"""Newest rows that are counted anew at each look: more than what other servers write during one transaction."""

_THUMBS = ("thumb_up", "thumb_down")


class Tally:
    """Running counts of one version, as champion or as canary, since a moment."""

    def __init__(self, engine: Engine, model_uri: str, canary: bool, since: str, slow_ms: float) -> None:
        self._engine = engine
        self._shown = and_(
            ANSWERS.c.request_id == INTERACTIONS.c.id,
            ANSWERS.c.position == 0,
            ANSWERS.c.model_uri == model_uri,
            INTERACTIONS.c.canary == canary,
            INTERACTIONS.c.received_at >= since,
        )
        self._answers = _Cursor(ANSWERS.c.seq, self._answer_counts(slow_ms))
        self._thumbs = _Cursor(FEEDBACK.c.seq, self._thumb_counts())

    def figures(self) -> dict[str, tuple[int, int]]:
        """Figure -> (how many, of how many)."""
        with reading(self._engine) as connection:
            found, votes = self._answers.read(connection), self._thumbs.read(connection)
        whole = found["total"] - found["errors"]
        return {
            "violation": (found["violations"], whole),
            "refusal": (found["refusals"], whole),
            "error": (found["errors"], found["total"]),
            "slow": (found["slow"] + found["left_slow"], whole + found["left_slow"]),
            "thumb_down": (votes["down"], votes["judged"]),
        }

    def _answer_counts(self, slow_ms: float) -> Select[Any]:
        """A reader who left counts for nothing, unless the answer was slow by then: that may be why."""
        left = func.coalesce(ANSWERS.c.error, "") == LEFT
        failed, slow = ANSWERS.c.finish_reason == "error", ANSWERS.c.latency_ms > slow_ms
        return select(
            _count(~left, "total"),
            _count(and_(failed, ~left), "errors"),
            _count(and_(ANSWERS.c.refusal, ~failed), "refusals"),
            _count(and_(ANSWERS.c.violation, ~failed), "violations"),
            _count(and_(slow, ~failed), "slow"),
            _count(and_(slow, left), "left_slow"),
        ).where(self._shown)

    def _thumb_counts(self) -> Select[Any]:
        """A request has one vote, its first thumb: whoever gives another, under whatever name, changes nothing."""
        other = FEEDBACK.alias()
        before = exists().where(
            other.c.request_id == FEEDBACK.c.request_id, other.c.kind.in_(_THUMBS), other.c.seq < FEEDBACK.c.seq
        )
        down = FEEDBACK.c.kind == "thumb_down"
        return select(_count(or_(down, ~down), "judged"), _count(down, "down")).where(
            self._shown,
            or_(ANSWERS.c.error.is_(None), ANSWERS.c.error != LEFT),
            FEEDBACK.c.request_id == ANSWERS.c.request_id,
            FEEDBACK.c.kind.in_(_THUMBS),
            ~before,
        )


class _Cursor:
    """Counts over rows that are numbered: kept up to a number, counted anew beyond it."""

    def __init__(self, seq: Column[int], counts: Select[Any]) -> None:
        self._seq = seq
        self._counts = counts
        self._upto = 0
        self._kept = Counter[str]()

    def read(self, connection: Connection) -> Counter[str]:
        edge = int(connection.execute(select(func.max(self._seq))).scalar() or 0) - TAIL
        if edge > self._upto:
            older = self._counted(connection, self._seq > self._upto, self._seq <= edge)
            self._kept, self._upto = self._kept + older, edge
        return self._kept + self._counted(connection, self._seq > self._upto)

    def _counted(self, connection: Connection, *bounds: ColumnElement[bool]) -> Counter[str]:
        row = connection.execute(self._counts.where(*bounds)).mappings().one()
        return Counter({name: int(count or 0) for name, count in row.items()})


def _count(condition: ColumnElement[bool], name: str) -> Any:
    return func.sum(case((condition, 1), else_=0)).label(name)
