"""The log's evidence on the answers of one version to users: counted once, then only what is new.

A user has one vote in each figure, the share of their own answers; a request that names no user is a voter of its own.
So nobody counts for more by asking more often, and the votes are independent, which an interval of them needs.

Answers and thumbs are numbered as they are written, and neither ever changes. Those a good way back are counted for
good; the newest are counted anew at each look, because servers that share a database may commit out of order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sqlalchemy import Column, Connection, Engine, Select, and_, case, exists, func, or_, select
from sqlalchemy.sql.elements import ColumnElement

from plumbline.tasks.operations.serving.collect import LEFT
from plumbline.tasks.operations.serving.log import ANSWERS, FEEDBACK, INTERACTIONS
from plumbline.tasks.storage.database import reading

TAIL = 1000
"""Newest rows that are counted anew at each look: more than what other servers write during one transaction."""

Votes = dict[str, tuple[float, int]]
"""Figure -> (sum of the voters' shares, voters): whole numbers where every voter has one answer."""

_THUMBS = ("thumb_up", "thumb_down")
_UNNAMED = ""  # stands for all requests that name no user; each has a vote
_DIGITS = 9  # sums of shares are rounded to these, so that counting on gives what counting anew gives


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
        self._answers = _Cursor(ANSWERS.c.seq, self._answer_counts(slow_ms), _answer_figures)
        self._thumbs = _Cursor(FEEDBACK.c.seq, self._thumb_counts(), _thumb_figures)

    def figures(self) -> Votes:
        """The votes in each figure."""
        with reading(self._engine) as connection:
            return self._answers.read(connection) | self._thumbs.read(connection)

    def _answer_counts(self, slow_ms: float) -> Select[Any]:
        """A reader who left counts for nothing, unless the answer was slow by then: that may be why."""
        left = func.coalesce(ANSWERS.c.error, "") == LEFT
        failed, slow = ANSWERS.c.finish_reason == "error", ANSWERS.c.latency_ms > slow_ms
        return select(
            func.coalesce(INTERACTIONS.c.user_key, _UNNAMED).label("voter"),
            _count(~left, "total"),
            _count(and_(failed, ~left), "errors"),
            _count(and_(ANSWERS.c.refusal, ~failed), "refusals"),
            _count(and_(ANSWERS.c.violation, ~failed), "violations"),
            _count(and_(slow, ~failed), "slow"),
            _count(and_(slow, left), "left_slow"),
        ).where(self._shown)

    def _thumb_counts(self) -> Select[Any]:
        """A request has one thumb, its first: whoever gives another, under whatever name, changes nothing."""
        other = FEEDBACK.alias()
        before = exists().where(
            other.c.request_id == FEEDBACK.c.request_id, other.c.kind.in_(_THUMBS), other.c.seq < FEEDBACK.c.seq
        )
        down = FEEDBACK.c.kind == "thumb_down"
        return select(
            func.coalesce(INTERACTIONS.c.user_key, _UNNAMED).label("voter"),
            _count(or_(down, ~down), "judged"),
            _count(down, "down"),
        ).where(
            self._shown,
            or_(ANSWERS.c.error.is_(None), ANSWERS.c.error != LEFT),
            FEEDBACK.c.request_id == ANSWERS.c.request_id,
            FEEDBACK.c.kind.in_(_THUMBS),
            ~before,
        )


def _answer_figures(found: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    whole = found["total"] - found["errors"]
    return {
        "violation": (found["violations"], whole),
        "refusal": (found["refusals"], whole),
        "error": (found["errors"], found["total"]),
        "slow": (found["slow"] + found["left_slow"], whole + found["left_slow"]),
    }


def _thumb_figures(found: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    return {"thumb_down": (found["down"], found["judged"])}


class _Cursor:
    """Votes over rows that are numbered: kept up to a number, counted anew beyond it."""

    def __init__(
        self, seq: Column[int], counts: Select[Any], figures: Callable[[Counter[str]], dict[str, tuple[int, int]]]
    ) -> None:
        self._seq = seq
        self._counts = counts
        self._figures = figures
        self._upto = 0
        self._kept: dict[str, Counter[str]] = {}
        self._votes: Votes = dict.fromkeys(figures(Counter()), (0, 0))

    def read(self, connection: Connection) -> Votes:
        edge = int(connection.execute(select(func.max(self._seq))).scalar() or 0) - TAIL
        if edge > self._upto:
            older = self._counted(connection, self._seq > self._upto, self._seq <= edge)
            self._votes = self._with(older)
            for voter, counts in older.items():
                self._kept[voter] = self._kept.get(voter, Counter()) + counts
            self._upto = edge
        votes = self._with(self._counted(connection, self._seq > self._upto))
        return {figure: (round(total, _DIGITS), voters) for figure, (total, voters) in votes.items()}

    def _with(self, found: Mapping[str, Counter[str]]) -> Votes:
        """The votes with these counts more: only voters with new rows are looked at."""
        votes = dict(self._votes)
        for voter, counts in found.items():
            before = self._kept.get(voter, Counter())
            for sign, item in ((-1, before), (1, before + counts)):
                for figure, (share, voters) in self._shares(voter, item):
                    total, many = votes[figure]
                    votes[figure] = (total + sign * share, many + sign * voters)
        return votes

    def _shares(self, voter: str, counts: Counter[str]) -> Iterable[tuple[str, tuple[float, int]]]:
        for figure, (bad, total) in self._figures(counts).items():
            yield figure, (bad, total) if voter == _UNNAMED else (bad / total if total else 0, int(total > 0))

    def _counted(self, connection: Connection, *bounds: ColumnElement[bool]) -> dict[str, Counter[str]]:
        rows = connection.execute(self._counts.where(*bounds).group_by("voter")).mappings().all()
        return {
            str(row["voter"]): Counter({name: int(count or 0) for name, count in row.items() if name != "voter"})
            for row in rows
        }


def _count(condition: ColumnElement[bool], name: str) -> Any:
    return func.sum(case((condition, 1), else_=0)).label(name)
