"""The canary: some users, always the same ones, are answered by the challenger until it is shown to be worse.

The evidence is the log itself (`evidence`): it survives a restart, and servers that share an operations database share
it. Per figure the difference of two rates has an interval that holds at every look at once
(`tasks.statistics.anytime`); its level is shared out over the figures. Once an interval lies beyond its margin the
challenger answers nobody any more, at once and after any restart: the return is kept by its version. The next
version starts afresh, and so does one that a person lets try again (`reopen`): what it answered before is no evidence.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import Column, Engine, String, Table, Text, insert, select, update

from plumbline.data_contracts.errors import PlumblineError
from plumbline.tasks.operations.serving.chat import ChatRequest
from plumbline.tasks.operations.serving.evidence import Tally, Votes
from plumbline.tasks.operations.serving.log import METADATA, stamp
from plumbline.tasks.operations.serving.shadow import falls_into
from plumbline.tasks.operations.serving.slots import Served, Slot
from plumbline.tasks.params.serving import CanaryParams
from plumbline.tasks.storage.database import reading, writing

CANARIES = Table(
    "serving_canaries",
    METADATA,
    Column("challenger", String(300), primary_key=True),
    Column("started_at", String(32), nullable=False),
    Column("returned_at", String(32)),
    Column("reason", Text),
    Column("evidence", Text),
)


@dataclass(frozen=True, slots=True)
class CanaryRecord:
    """One version's canary: when it began, and when and why it was sent back (None: it was not)."""

    challenger: str
    started_at: str
    returned_at: str | None
    reason: str | None
    evidence: Mapping[str, Any] | None


OnReturn = Callable[[str, Mapping[str, Any]], None]
"""Called once for a return, with the reason and the evidence."""


def worse(challenger: Votes, champion: Votes, params: CanaryParams) -> dict[str, dict[str, float]]:
    """The figures by which the challenger is shown to be worse than margins allow, with their evidence."""
    from plumbline.tasks.statistics.anytime import rate_difference_sequence

    margins: Mapping[str, float] = params.margins.model_dump()
    found = {}
    for figure, margin in margins.items():
        one, other = challenger[figure], champion[figure]
        interval = rate_difference_sequence(*one, *other, alpha=params.alpha / len(margins))
        if not math.isnan(interval.mean) and interval.low > margin:
            found[figure] = {
                "challenger": one[0] / one[1],
                "challenger_n": one[1],
                "champion": other[0] / other[1],
                "champion_n": other[1],
                "difference": interval.mean,
                "low": interval.low,
                "high": interval.high,
                "margin": margin,
            }
    return found


def canaries(engine: Engine) -> list[CanaryRecord]:
    """Every version's canary, the one that began last at the end."""
    with reading(engine) as connection:
        rows = connection.execute(select(CANARIES).order_by(CANARIES.c.started_at)).mappings().all()
    return [
        CanaryRecord(**{**row, "evidence": orjson.loads(row["evidence"]) if row["evidence"] else None}) for row in rows
    ]


def reopen(engine: Engine, ended: CanaryRecord, now: datetime) -> bool:
    """Let a version that was sent back begin anew; False where somebody else did since `ended` was read."""
    with writing(engine) as connection:
        done = connection.execute(
            update(CANARIES)
            .where(CANARIES.c.challenger == ended.challenger, CANARIES.c.returned_at == ended.returned_at)
            .values(started_at=stamp(now), returned_at=None, reason=None, evidence=None)
        )
    return done.rowcount == 1


def sticky_key(request: ChatRequest) -> str:
    """The key that keeps a user on one side: the user that the request names, else the conversation's beginning."""
    if request.user is not None:
        return f"user {request.user}"
    opening = []
    for message in request.messages:
        opening.append([message.role, message.content])
        if message.role == "user":
            break
    return f"conversation {orjson.dumps(opening).decode()}"


class Canary:
    """The canary: the users whom the challenger answers, and when that ends."""

    def __init__(
        self,
        engine: Engine,
        slot: Slot,
        champion: Slot,
        params: CanaryParams,
        on_return: OnReturn,
        clock: Callable[[], datetime],
    ) -> None:
        self._engine = engine
        self._slot = slot
        self._champion = champion
        self._params = params
        self._on_return = on_return
        self._clock = clock
        self._lock = threading.Lock()
        self._tallies: dict[tuple[str, bool, str], Tally] = {}
        self._open: str | None = None  # the challenger that may answer; anything else may not
        self.returned: str | None = None

    def choose(self, request: ChatRequest) -> Served | None:
        """The challenger with an answer begun, where this user is one of the share and it may answer."""
        if self._open is None or not falls_into(self._params.share, "canary", sticky_key(request)):
            return None
        served = self._slot.begin()
        if served is None:
            return None
        if served.uri != self._open:  # just swapped in, and not yet looked up
            served.end()
            return None
        return served

    def state(self) -> dict[str, Any]:
        """For /healthz."""
        return {"challenger": self._slot.uri, "serving": self._open is not None, "returned": self.returned}

    def check(self) -> bool:
        """Look at the log once; say whether this look ended the canary. Raises `OperationsError`."""
        with self._lock:
            challenger, champion = self._slot.uri, self._champion.uri
            if challenger is None or champion is None or challenger == champion:
                self._open = self.returned = None
                return False
            started, self.returned = self._begun(challenger)
            if self.returned is not None:
                self._open = None
                return False
            self._open = challenger
            found = self._look(challenger, champion, started)
            if not found:
                return False
            self._return(challenger, champion, started, found)
        return True

    def _look(self, challenger: str, champion: str, started: str) -> dict[str, dict[str, float]]:
        sides = ((challenger, True, started), (champion, False, started))
        slow_ms = self._params.slow_ms
        self._tallies = {side: self._tallies.get(side) or Tally(self._engine, *side, slow_ms) for side in sides}
        one, other = (self._tallies[side].figures() for side in sides)
        return worse(one, other, self._params)

    def _begun(self, challenger: str) -> tuple[str, str | None]:
        """The start of this challenger's canary (now, if it did not start), and the reason for which it ended."""
        with writing(self._engine) as connection:
            row = connection.execute(select(CANARIES).where(CANARIES.c.challenger == challenger)).mappings().first()
            if row is not None:
                return str(row["started_at"]), row["reason"]
            now = stamp(self._clock())
            connection.execute(insert(CANARIES).values(challenger=challenger, started_at=now))
            return now, None

    def _return(self, challenger: str, champion: str, started: str, found: Mapping[str, Any]) -> None:
        """Stop at once, then record it, then report it."""
        self._open = None
        told = "; ".join(
            f"{figure} {item['challenger']:.3f} against {item['champion']:.3f} (difference at least "
            f"{item['low']:.3f}, margin {item['margin']:g})"
            for figure, item in found.items()
        )
        self.returned = f"{challenger} is worse than {champion}: {told}"
        evidence = {"challenger": challenger, "champion": champion, "since": started, "figures": dict(found)}
        kept = {
            "returned_at": stamp(self._clock()),
            "reason": self.returned,
            "evidence": orjson.dumps(evidence, option=orjson.OPT_SORT_KEYS).decode(),
        }
        with writing(self._engine) as connection:
            first = connection.execute(
                update(CANARIES)
                .where(CANARIES.c.challenger == challenger, CANARIES.c.returned_at.is_(None))
                .values(**kept)
            )
        if first.rowcount == 1:  # of several servers, one reports
            try:
                self._on_return(self.returned, evidence)
            except PlumblineError as error:
                self.returned += f". It could not be put on the ledger: {error}"
