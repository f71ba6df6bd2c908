"""Admission: at most one run a key, thresholds, budget, a clock that jumps; by hand, threads, a state machine."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from sqlalchemy import Engine

from plumbline.data_contracts.errors import OperationsError
from plumbline.tasks.operations.freshness.admission import Admission, FreshState, consider, finish, runs
from plumbline.tasks.operations.freshness.outbox import entry_states, put
from plumbline.tasks.params.operations import OperationsParams
from plumbline.tasks.params.trigger import TriggerParams
from plumbline.tasks.storage.database import open_database
from plumbline.tasks.storage.database.outbox_tables import METADATA

NOW = datetime(2026, 11, 24, 3, tzinfo=UTC)
PARAMS = TriggerParams(
    min_new_records=10,
    max_age_days=7,
    max_runs_per_week=3,
    debounce_s=60,
    max_wait_s=600,
    retry_delay_s=100,
    max_attempts=2,
)


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return open_database(tmp_path, OperationsParams(), METADATA)


def batch(engine: Engine, key: str, at: datetime = NOW) -> str:
    return put(engine, kind="batch", subject=key, payload={}, key=key, now=at).key


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def ask(engine: Engine, when: datetime, forced: bool = False, **counts: int) -> Admission:
    return consider(engine, PARAMS, state=FreshState(new_records=counts), now=when, forced=forced)


def states(engine: Engine) -> dict[str, str]:
    return {item.entry.key: item.state for item in entry_states(engine)}


def test_enough_quiet_records_start_one_run_and_its_keys_never_another(engine: Engine) -> None:
    batch(engine, "a"), batch(engine, "b")
    first = ask(engine, at(61), a=6, b=4)  # 6 + 4 = 10 of 10
    assert first.admitted and set(first.keys) == {"a", "b"}
    assert first.run_key is not None
    assert "under way" in ask(engine, at(62), a=6, b=4).reason
    finish(engine, first.run_key, outcome="completed", model_uri="models:/m/1", detail="")
    again = ask(engine, at(10_000), a=6, b=4)
    assert not again.admitted and again.reason == "nothing new waits"


def test_one_record_short_waits_for_more_or_for_age(engine: Engine) -> None:
    batch(engine, "a")
    assert "9 new records of 10" in ask(engine, at(61), a=9).reason
    assert not ask(engine, at(7 * 86_400 - 1), a=9).admitted
    assert not ask(engine, at(7 * 86_400 + 1), a=0).admitted  # nothing new at all: the same model would come out
    assert "7.0 days" in ask(engine, at(7 * 86_400 + 1), a=9).reason


def test_age_counts_from_the_last_registered_version(engine: Engine) -> None:
    batch(engine, "a", NOW - timedelta(days=30))
    state = FreshState(new_records={"a": 1}, last_model_at=NOW - timedelta(days=6))
    assert not consider(engine, PARAMS, state=state, now=NOW).admitted
    assert consider(engine, PARAMS, state=state, now=NOW + timedelta(days=1.1)).admitted


def test_quiet_is_waited_for_but_not_for_ever(engine: Engine) -> None:
    batch(engine, "a"), batch(engine, "b", at(30))
    assert "quiet for 31 s of 60" in ask(engine, at(61), a=10, b=1).reason
    assert ask(engine, at(91), a=10, b=1).admitted


def test_a_steady_stream_starts_after_the_longest_wait(engine: Engine) -> None:
    for second in range(0, 601, 30):
        batch(engine, f"k{second}", at(second))
    counts = {f"k{second}": 1 for second in range(0, 601, 30)}
    assert not ask(engine, at(599), **counts).admitted
    assert ask(engine, at(600), **counts).admitted


def test_the_budget_of_a_week_holds_and_comes_back(engine: Engine) -> None:
    for number in range(4):
        batch(engine, f"k{number}", at(number))
        answer = ask(engine, at(1000 * (number + 1)), **{f"k{number}": 10})
        if number < 3:
            assert answer.run_key is not None
            finish(engine, answer.run_key, outcome="rejected", model_uri=None, detail="")
    assert "budget is spent: 3 runs of 3" in answer.reason
    assert not ask(engine, at(1000 + 7 * 86_400 - 1), k3=10).admitted
    assert ask(engine, at(1000 + 7 * 86_400), k3=10).admitted  # a week to the second: it counts no more


def test_a_failed_run_is_tried_again_later_and_not_for_ever(engine: Engine) -> None:
    batch(engine, "a")
    for attempt in (1, 2):
        claim = ask(engine, at(attempt * 1000), a=10)
        assert claim.run_key is not None
        finish(engine, claim.run_key, outcome="failed", model_uri=None, detail="no memory", now=at(attempt * 1000 + 1))
        assert not ask(engine, at(attempt * 1000 + 100), a=10).admitted  # 99 s of 100 since the failure
    assert states(engine) == {"a": "abandoned"}
    assert not ask(engine, at(9000), a=10).admitted
    assert ask(engine, at(9000), forced=True, a=10).keys == ("a",)  # a person may


def test_a_run_whose_process_is_gone_gives_its_keys_back(engine: Engine) -> None:
    batch(engine, "a")
    first = ask(engine, at(61), a=10).run_key
    assert first is not None
    gone = FreshState(new_records={"a": 10}, gone=frozenset({first}))
    assert not consider(engine, PARAMS, state=gone, now=at(62)).admitted  # the delay after a failure
    assert consider(engine, PARAMS, state=gone, now=at(162)).keys == ("a",)
    assert [run.outcome for run in runs(engine)] == ["killed", None]


def test_a_living_process_keeps_its_claim_over_a_clock_that_jumps_ahead(engine: Engine) -> None:
    batch(engine, "a")
    first = ask(engine, at(61), a=10).run_key
    assert first is not None
    later = at(400 * 86_400)
    alive = FreshState(new_records={"a": 10}, alive=frozenset({first}))
    assert "under way" in consider(engine, PARAMS, state=alive, now=later).reason
    consider(engine, PARAMS, state=FreshState(new_records={"a": 10}), now=later)  # on another machine: silent too long
    assert runs(engine)[0].outcome == "killed"


def test_a_clock_set_back_gives_no_negative_age_and_no_storm(engine: Engine) -> None:
    batch(engine, "a", at(5 * 86_400))
    answer = ask(engine, NOW, a=10)
    assert "quiet for 0 s" in answer.reason and "clock was set back" in answer.reason
    started = ask(engine, at(61), a=10)  # counted from when the clock was set back
    assert started.run_key is not None and "clock" not in started.reason
    finish(engine, started.run_key, outcome="completed", model_uri=None, detail="")
    assert not ask(engine, at(-86_400), a=10).admitted


def test_a_clock_set_back_by_months_keeps_the_budget_for_a_week_not_for_months(engine: Engine) -> None:
    """Three runs of three at later times than now: they count from now, so no fourth starts before a week from now."""
    for number in range(4):
        batch(engine, f"k{number}", at(number))
    for number in range(3):
        run_key = ask(engine, at(1000 * (number + 1)), **{f"k{number}": 10}).run_key
        assert run_key is not None
        finish(engine, run_key, outcome="completed", model_uri=None, detail="", now=at(1000 * (number + 1)))
    back = NOW - timedelta(days=90)
    assert "budget is spent: 3 runs of 3" in ask(engine, back, k3=10).reason
    assert "budget is spent" in ask(engine, back + timedelta(days=6.9), k3=10).reason
    assert ask(engine, back + timedelta(days=7.1), k3=10).keys == ("k3",)


def test_a_released_claim_costs_neither_attempt_nor_budget(engine: Engine) -> None:
    batch(engine, "a")
    for number in range(5):
        claim = ask(engine, at(100 + number), a=10)
        assert claim.run_key is not None
        finish(engine, claim.run_key, outcome="released", model_uri=None, detail="workspace busy")
    assert ask(engine, at(200), a=10).admitted


def test_a_finding_needs_no_records_and_no_quiet_but_budget_and_comes_once(engine: Engine) -> None:
    put(engine, kind="finding", subject="win rate fell", payload={}, key="f1", now=NOW)
    answer = ask(engine, NOW)
    assert answer.admitted and "win rate fell" in answer.reason and answer.run_key is not None
    finish(engine, answer.run_key, outcome="rejected", model_uri=None, detail="")
    put(engine, kind="finding", subject="win rate fell", payload={}, key="f1", now=NOW)
    assert not ask(engine, at(1000)).admitted


def test_a_batch_that_a_model_was_trained_on_needs_no_run(engine: Engine) -> None:
    batch(engine, "a")
    state = FreshState(covered_by={"a": "models:/m/4"}, event_key="a")
    assert "a had its run (models:/m/4 is the answer to it)" in consider(engine, PARAMS, state=state, now=at(61)).reason


def test_an_event_whose_key_is_not_there_is_told_so(engine: Engine) -> None:
    state = FreshState(event_key="lost")
    assert consider(engine, PARAMS, state=state, now=NOW).reason == "nothing new waits; lost is not in the outbox"


def test_finish_is_repeatable_and_knows_its_runs(engine: Engine) -> None:
    batch(engine, "a")
    key = ask(engine, at(61), a=10).run_key
    assert key is not None
    for outcome in ("completed", "failed"):
        finish(engine, key, outcome=outcome, model_uri="models:/m/1", detail="")  # type: ignore[arg-type]
    assert states(engine) == {"a": "spent"} and runs(engine)[0].outcome == "completed"
    with pytest.raises(OperationsError, match="none of that key"):
        finish(engine, "other", outcome="completed", model_uri=None, detail="")


def test_eight_workers_at_once_start_one_run(engine: Engine, tmp_path: Path) -> None:
    batch(engine, "a")
    answers: list[Admission] = []
    ready = threading.Barrier(8)

    def work() -> None:
        own = open_database(tmp_path, OperationsParams(), METADATA)
        ready.wait()
        answers.append(ask(own, at(61), a=10))

    run_all([work] * 8)
    assert sorted(answer.admitted for answer in answers) == [False] * 7 + [True]


def run_all(works: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class Admissions(RuleBasedStateMachine):
    """Batches, findings, workers, kills and clock jumps in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.engine = open_database(Path(self.folder.name), OperationsParams(), METADATA)
        self.now, self.keys = NOW, list[str]()
        self.open: Admission | None = None
        self.ended_well: list[str] = []
        self.started: list[tuple[datetime, tuple[str, ...]]] = []

    @rule(finding=st.booleans(), again=st.booleans())
    def arrive(self, finding: bool, again: bool) -> None:
        key = self.keys[0] if again and self.keys else f"k{len(self.keys)}"
        put(self.engine, kind="finding" if finding else "batch", subject=key, payload={}, key=key, now=self.now)
        self.keys += [] if key in self.keys else [key]

    @rule(seconds=st.sampled_from([1.0, 61.0, 101.0, 86_400.0, 8 * 86_400.0, -3600.0, -9 * 86_400.0]))
    def clock(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    @rule(killed=st.booleans(), records=st.integers(0, 12))
    def consider(self, killed: bool, records: int) -> None:
        held = frozenset({self.open.run_key or ""}) if self.open else frozenset[str]()
        state = FreshState(dict.fromkeys(self.keys, records), alive=frozenset() if killed else held,
                           gone=held if killed else frozenset())  # fmt: skip
        answer = consider(self.engine, PARAMS, state=state, now=self.now)
        if killed:
            self.open = None
        if answer.admitted:
            assert self.open is None, "two runs at a time"
            assert not set(answer.keys) & set(self.ended_well), "a second run for a key whose run ended well"
            self.open = answer
            self.started.append((self.now, answer.keys))

    @rule(outcome=st.sampled_from(["completed", "rejected", "failed"]))
    def end(self, outcome: str) -> None:
        if self.open is not None and self.open.run_key is not None:
            finish(self.engine, self.open.run_key, outcome=outcome, model_uri=None, detail="", now=self.now)  # type: ignore[arg-type]
            self.ended_well += self.open.keys if outcome != "failed" else ()
            self.open = None

    @invariant()
    def bounded(self) -> None:
        for key in self.keys:
            assert sum(key in keys for _, keys in self.started) <= PARAMS.max_attempts, "attempts without bound"
        for moment, _ in self.started:  # whatever the clock said in between
            week = [begun for begun, _ in self.started if moment <= begun < moment + timedelta(days=7)]
            in_order = len(week) <= PARAMS.max_runs_per_week or self.now < moment or self._went_back()
            assert in_order, "budget exceeded"

    def _went_back(self) -> bool:
        moments = [moment for moment, _ in self.started]
        return moments != sorted(moments)

    def teardown(self) -> None:
        self.engine.dispose()
        self.folder.cleanup()


TestAdmissions = Admissions.TestCase
TestAdmissions.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
