"""Admission of runs: at most one run per key, thresholds, a budget, and a clock that may jump.

`consider` decides in ONE transaction that no other can interleave:

1. times that lie in the future (the clock was set back) count as now: nothing has a negative age;
2. runs whose process is gone, or that never reported their end, count as killed, and their keys are due again;
3. keys that a registered model was trained on, or made for, are spent: no run is needed for them;
4. one run at a time;
5. every key that is due, the thresholds, the quiet time and the budget: admitted or not, with the reason;
6. the claim: the run and all its keys.

A key is claimed by one run at a time, by `max_attempts` in all, and by none after a run that ended well.
A run that the gate rejected ended well: the same data would be rejected again.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import Connection, Engine, Row, select, update

from plumbline.data_contracts.errors import OperationsError
from plumbline.tasks.params.trigger import TriggerParams
from plumbline.tasks.storage.database import reading, writing
from plumbline.tasks.storage.database.outbox_tables import (
    ABANDONED,
    CLAIMED,
    OUTBOX,
    RUNS,
    SPENT,
    WAITING,
    one_at_a_time,
    utc_now,
)

Outcome = Literal["completed", "failed", "rejected", "killed", "released"]
ENDED_WELL = ("completed", "rejected")
_WEEK = timedelta(days=7)
_EXAMPLES = 3
_TOLD = {SPENT: "had its run", ABANDONED: "failed too often", CLAIMED: "has a run", WAITING: "waits for a retry"}


@dataclass(frozen=True, slots=True)
class FreshState:
    """The facts on which admission decides; a verb gathers them.

    `new_records` counts for each batch key the curated records that no earlier key of the mapping and
    no dataset of the last model has; a batch that is missing here is not considered yet.
    """

    new_records: Mapping[str, int] = field(default_factory=dict)
    covered_by: Mapping[str, str] = field(default_factory=dict)  # key -> model trained on it, or made for it, already
    last_model_at: datetime | None = None  # when the last version was registered, however its run began
    alive: frozenset[str] = frozenset()  # open runs whose process is known to live
    gone: frozenset[str] = frozenset()  # open runs whose process is known to be dead
    holder: Mapping[str, Any] | None = None  # the process that asks, to be looked up later
    event_key: str | None = None  # the key of the event that made it ask


@dataclass(frozen=True, slots=True)
class Admission:
    """The verdict. `run_key` names the claim that `finish` closes; None if none was made."""

    admitted: bool
    reason: str
    keys: tuple[str, ...]
    run_key: str | None


@dataclass(frozen=True, slots=True)
class FreshRun:
    """A run that fresh data or a finding started."""

    run_key: str
    keys: tuple[str, ...]
    reason: str
    holder: Mapping[str, Any] | None
    started_at: datetime
    finished_at: datetime | None
    outcome: str | None
    model_uri: str | None
    detail: str | None


def consider(
    engine: Engine, params: TriggerParams, *, state: FreshState, now: datetime, forced: bool = False
) -> Admission:
    """Decide whether a run may start now, and claim every due key for it if so.

    `forced` is a person's word: it passes over thresholds, quiet time, retries and budget, not over a run under way.
    """
    with writing(engine) as connection:
        one_at_a_time(connection)
        notes = _settle_clock(connection, now)
        _release_ended(connection, params, state, now)
        _settle_covered(connection, state)
        under_way = connection.execute(select(RUNS).where(RUNS.c.finished_at.is_(None))).first()
        if under_way is not None:
            return _refused(f"run {under_way.run_key} is under way since {_stamp(under_way.started_at)}", notes)
        due = _due(connection, params, state, now, forced)
        reason, admitted = ("a person asked for it", True) if forced else _judge(connection, params, state, now, due)
        if not admitted:
            return _refused(reason, notes)
        return _claim(connection, params, state, now, due, "; ".join([reason, *notes]))


def finish(
    engine: Engine,
    run_key: str,
    *,
    outcome: Outcome,
    model_uri: str | None,
    detail: str,
    now: datetime | None = None,
) -> None:
    """Close a run. A failed run's keys become due again while attempts are left; "released" gives the claim back
    as if it had never been made (the run could not begin). Repeating it changes nothing. Raises `OperationsError`.
    """
    with writing(engine) as connection:
        one_at_a_time(connection)
        run = connection.execute(select(RUNS).where(RUNS.c.run_key == run_key)).first()
        if run is None:
            raise OperationsError(f"run {run_key}: expected a run that admission let in, found none of that key.")
        # One that was taken for killed and comes back may still report how it really ended.
        if run.outcome is None or (run.outcome == "killed" and outcome in ENDED_WELL):
            _close(connection, run, outcome, model_uri, detail, now or utc_now())


def runs(engine: Engine) -> list[FreshRun]:
    """Every run that was admitted, oldest first."""
    with reading(engine) as connection:
        rows = connection.execute(select(RUNS).order_by(RUNS.c.started_at, RUNS.c.run_key)).all()
    names = ("run_key", "reason", "holder", "started_at", "finished_at", "outcome", "model_uri", "detail")
    return [FreshRun(keys=tuple(row.claimed_keys), **{name: row._mapping[name] for name in names}) for row in rows]


def _settle_clock(connection: Connection, now: datetime) -> list[str]:
    """Let what lies in the future count from now, so that no age is negative and none stays so."""
    ahead = 0
    for table, column in ((OUTBOX, OUTBOX.c.due_from), (RUNS, RUNS.c.counted_at)):
        ahead += connection.execute(update(table).where(column > now).values({column.name: now})).rowcount
    return [f"the clock was set back: {ahead} stored times lay ahead and count from now"] if ahead else []


def _release_ended(connection: Connection, params: TriggerParams, state: FreshState, now: datetime) -> None:
    for run in connection.execute(select(RUNS).where(RUNS.c.finished_at.is_(None))).all():
        silent_s = (now - run.counted_at).total_seconds()
        if run.run_key in state.gone:
            _close(connection, run, "killed", None, "its process is gone and reported no end", now)
        elif run.run_key not in state.alive and silent_s >= params.claim_timeout_s:
            _close(connection, run, "killed", None, f"no end was reported for {silent_s:.0f} s", now)


def _settle_covered(connection: Connection, state: FreshState) -> None:
    for key, model in state.covered_by.items():
        waiting = (OUTBOX.c.key == key) & OUTBOX.c.state.in_((WAITING, ABANDONED))
        connection.execute(update(OUTBOX).where(waiting).values(state=SPENT, note=f"{model} is the answer to it"))


def _due(
    connection: Connection, params: TriggerParams, state: FreshState, now: datetime, forced: bool
) -> list[Row[Any]]:
    """Keys that no run has or had, and of the failed ones those that waited long enough, oldest first."""
    query = select(OUTBOX).where(OUTBOX.c.state.in_((WAITING, ABANDONED) if forced else (WAITING,)))
    rows = connection.execute(query.order_by(OUTBOX.c.created_at, OUTBOX.c.key)).all()
    retry_from = now - timedelta(seconds=params.retry_delay_s)
    ready = [row for row in rows if forced or row.attempts == 0 or row.due_from <= retry_from]
    return [row for row in ready if row.kind == "finding" or forced or row.key in state.new_records]


def _judge(
    connection: Connection, params: TriggerParams, state: FreshState, now: datetime, due: Sequence[Row[Any]]
) -> tuple[str, bool]:
    """Why a run may start or may not, and which of the two."""
    if not due:
        return _nothing_due(connection, state), False
    why = _worth(connection, params, state, now, due)
    if why is None:
        found = sum(state.new_records.get(row.key, 0) for row in due)
        return f"{found} new records of {params.min_new_records}, and the last run is not too old", False
    spent = _spent_budget(connection, now)
    if spent >= params.max_runs_per_week:
        return f"{why}, but the budget is spent: {spent} runs of {params.max_runs_per_week} in 7 days", False
    waited = [(now - row.due_from).total_seconds() for row in due if row.attempts == 0]
    retried = any(row.attempts > 0 or row.kind == "finding" for row in due)
    if not retried and min(waited) < params.debounce_s and max(waited) < params.max_wait_s:
        return f"{why}, but quiet for {min(waited):.0f} s of {params.debounce_s:g}", False
    return why, True


def _worth(
    connection: Connection, params: TriggerParams, state: FreshState, now: datetime, due: Sequence[Row[Any]]
) -> str | None:
    """The reason for a run: a finding, enough new records, or some and a last run that is old."""
    findings = [row.subject for row in due if row.kind == "finding"]
    if findings:
        return f"finding: {', '.join(findings[:_EXAMPLES])}"
    found = sum(state.new_records.get(row.key, 0) for row in due)
    if found >= params.min_new_records:
        return f"{found} new records of {params.min_new_records}"
    age = _age_days(connection, state, now, due)
    if found > 0 and age >= params.max_age_days:
        return f"{found} new records, and {age:.1f} days of {params.max_age_days:g} since the last run"
    return None


def _age_days(connection: Connection, state: FreshState, now: datetime, due: Sequence[Row[Any]]) -> float:
    """Days since the last run that ended well or the last version, whichever is later; else since the oldest batch."""
    ended = select(RUNS.c.counted_at).where(RUNS.c.outcome.in_(ENDED_WELL)).order_by(RUNS.c.counted_at.desc()).limit(1)
    known = [moment for moment in (connection.execute(ended).scalar(), state.last_model_at) if moment is not None]
    since = max(known) if known else min(row.created_at for row in due)
    return max(0.0, (now - since).total_seconds() / 86_400)


def _spent_budget(connection: Connection, now: datetime) -> int:
    rows = connection.execute(select(RUNS.c.outcome).where(RUNS.c.counted_at > now - _WEEK)).all()
    return sum(row.outcome != "released" for row in rows)


def _nothing_due(connection: Connection, state: FreshState) -> str:
    if state.event_key is None:
        return "nothing new waits"
    row = connection.execute(select(OUTBOX).where(OUTBOX.c.key == state.event_key)).first()
    if row is None:
        return f"nothing new waits; {state.event_key} is not in the outbox"
    told = _TOLD[row.state]
    return f"nothing new waits; {state.event_key} {told}" + (f" ({row.note})" if row.note else "")


def _claim(
    connection: Connection,
    params: TriggerParams,
    state: FreshState,
    now: datetime,
    due: Sequence[Row[Any]],
    reason: str,
) -> Admission:
    run_key, keys = str(uuid.uuid4()), tuple(row.key for row in due)
    connection.execute(
        RUNS.insert().values(
            run_key=run_key,
            claimed_keys=list(keys),
            reason=reason,
            holder=dict(state.holder) if state.holder is not None else None,
            max_attempts=params.max_attempts,
            started_at=now,
            counted_at=now,
        )
    )
    claimed = {"state": CLAIMED, "run_key": run_key, "attempts": OUTBOX.c.attempts + 1}
    for key in keys:
        connection.execute(update(OUTBOX).where(OUTBOX.c.key == key).values(claimed))
    return Admission(True, reason, keys, run_key)


def _close(
    connection: Connection, run: Row[Any], outcome: Outcome, model_uri: str | None, detail: str, now: datetime
) -> None:
    ended = {"finished_at": now, "outcome": outcome, "model_uri": model_uri, "detail": detail}
    connection.execute(update(RUNS).where(RUNS.c.run_key == run.run_key).values(ended))
    mine = select(OUTBOX).where(OUTBOX.c.run_key == run.run_key, OUTBOX.c.state != SPENT)
    for row in connection.execute(mine).all():
        connection.execute(update(OUTBOX).where(OUTBOX.c.key == row.key).values(_after(row, run, outcome, detail, now)))


def _after(row: Row[Any], run: Row[Any], outcome: Outcome, detail: str, now: datetime) -> dict[str, Any]:
    """The state of a key after its run has ended."""
    if outcome in ENDED_WELL:
        return {"state": SPENT, "note": f"run {run.run_key} {outcome}"}
    if outcome == "released":
        return {"state": WAITING, "attempts": max(0, row.attempts - 1), "run_key": None, "note": detail}
    note = f"run {run.run_key} {outcome}: {detail}"
    if row.attempts >= run.max_attempts:
        return {"state": ABANDONED, "note": f"{row.attempts} attempts; {note}"}
    return {"state": WAITING, "due_from": now, "note": note}


def _refused(reason: str, notes: Sequence[str]) -> Admission:
    return Admission(False, "; ".join([reason, *notes]), (), None)


def _stamp(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")
