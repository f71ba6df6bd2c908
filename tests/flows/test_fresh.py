"""Runs that events and the poll start: a real server and admission; the test stands in for the retraining itself."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_API_URL, temporary_settings
from sqlalchemy import Engine

from plumbline.data_contracts.errors import StageError, WorkspaceBusy
from plumbline.flows import fresh
from plumbline.flows import retrain as loop
from plumbline.flows.deployment.deployments import REJECTED, apply
from plumbline.flows.graph.workspaces import exclusive_run, init_workspace
from plumbline.tasks.operations.admit_run import open_outbox
from plumbline.tasks.operations.announce import drain_outbox, request_retraining, workspace_id
from plumbline.tasks.operations.freshness import outbox
from plumbline.tasks.operations.freshness.admission import runs
from plumbline.tasks.params.document import save_params
from plumbline.tasks.params.layers import load_params
from plumbline.tasks.registry.register_model import Registered
from tests.flows.conftest import finding_event


@pytest.fixture
def root(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A workspace in which a finding waits that no event told of."""
    init_workspace(tmp_path)
    save_params(tmp_path, load_params(tmp_path, (), ["trigger.retry_delay_s=0.0"])[1])
    params, _ = load_params(tmp_path)
    assert params.trigger.retry_delay_s == 0
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    request_retraining(tmp_path, params, key="finding/1", why="win rate fell", evidence={})
    with temporary_settings({PREFECT_API_URL: server}):
        yield tmp_path


@pytest.fixture
def triggers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stand-in for the loop: registers a version that passed, and keeps what it was started by."""
    seen: list[Any] = []

    def retrain(root: str, trigger: Any) -> Registered:
        seen.append(trigger)
        return Registered("models:/assistant/7", [], True, [])

    monkeypatch.setattr(fresh, "retrain", retrain)
    return seen


def _database(root: Path) -> Engine:
    return open_outbox(root, load_params(root)[0])


def _event_id(root: Path) -> str:
    return outbox.event_id(workspace_id(root), "finding/1")


def _on_event(root: Path) -> State[Any]:
    state: State[Any] = fresh.retrain_on_fresh(str(root), "finding/1", _event_id(root), return_state=True)
    return state


def test_an_admitted_run_tells_what_started_it_and_ends_its_claim(root: Path, triggers: list[Any]) -> None:
    state = _on_event(root)
    assert state.is_completed()
    assert "models:/assistant/7" in str(state.message)
    assert "win rate fell" in str(state.message)
    (trigger,) = triggers
    (run,) = runs(_database(root))
    assert trigger == {
        "kind": "event",
        "key": "finding/1",
        "event_id": _event_id(root),
        "keys": ["finding/1"],
        "reason": run.reason,
        "run_key": run.run_key,
    }
    assert (run.outcome, run.model_uri) == ("completed", "models:/assistant/7")

    second = _on_event(root)
    assert (second.name, len(triggers)) == (fresh.NOT_STARTED, 1)
    assert "finding/1 had its run" in str(second.message)


def test_the_poll_sends_the_event_and_starts_the_run_of_a_lost_one(root: Path, triggers: list[Any]) -> None:
    """The trigger names the event that the key would have had."""
    state = fresh.poll_freshness(str(root), return_state=True)
    assert state.is_completed()
    assert (triggers[0]["kind"], triggers[0]["event_id"]) == ("poll", _event_id(root))
    assert outbox.pending(_database(root)) == []


def test_a_rejected_version_ends_the_claim_too(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fresh, "retrain", lambda root, trigger: Registered("models:/assistant/8", [], False, []))
    state = _on_event(root)
    assert state.is_completed()
    assert state.name == REJECTED
    assert "rejected by the gate" in str(state.message)
    assert [run.outcome for run in runs(_database(root))] == ["rejected"]
    assert _on_event(root).name == fresh.NOT_STARTED


def test_the_server_sees_that_the_gate_said_no_and_a_caller_gets_the_version(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rejected = Registered("models:/assistant/8", [], False, [])
    monkeypatch.setattr(loop, "_retrain", lambda *_: rejected)
    state: State[Any] = loop.retrain(str(root), return_state=True)
    assert (state.is_completed(), state.name) == (True, REJECTED)
    assert "models:/assistant/8" in str(state.message)
    assert loop.retrain(str(root)) == rejected


@pytest.mark.long
def test_an_event_sent_again_after_a_restart_of_the_server_gives_no_second_run(
    root: Path,
    triggers: list[Any],
    restartable: Callable[[], AbstractContextManager[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server forgets what it has seen, so its trigger starts the flow twice, with the same key: admission does not.

    The test runs what the server scheduled, with the parameters that it filled from the event.
    """
    params, _ = load_params(root)
    with restartable() as url:
        monkeypatch.setenv("PREFECT_API_URL", url)
        apply(root, params)
        (entry,) = drain_outbox(root, params)
        (first,) = _scheduled(url, 1)
    with restartable() as url:
        httpx.post(f"{url}/events", json=[finding_event(root, entry)]).raise_for_status()
        both = _scheduled(url, 2)
    assert both == [first, first] == [{"root": str(root), "key": "finding/1", "event_id": entry.event_id}] * 2
    names = [fresh.retrain_on_fresh(**asked, return_state=True).name for asked in both]
    assert names == ["Completed", fresh.NOT_STARTED]
    assert ([run.outcome for run in runs(_database(root))], len(triggers)) == (["completed"], 1)


def _scheduled(url: str, count: int) -> list[dict[str, Any]]:
    """The parameters of the runs that a server without a worker scheduled, as soon as there are `count`."""
    until = time.monotonic() + 60
    wanted = {"flows": {"name": {"any_": ["retrain-on-fresh"]}}}
    while len(found := httpx.post(f"{url}/flow_runs/filter", json=wanted).raise_for_status().json()) < count:
        assert time.monotonic() < until, f"waited in vain for {count} runs, found {len(found)}"
        time.sleep(0.3)
    return [run["parameters"] for run in found]


def test_a_failed_run_gives_its_key_back(root: Path, triggers: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(root: str, trigger: Any) -> Registered:
        raise StageError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(fresh, "retrain", fail)
        failed = _on_event(root)
    assert failed.is_failed()
    (run,) = runs(_database(root))
    assert (run.outcome, run.detail) == ("failed", "StageError: out of memory")
    assert fresh.poll_freshness(str(root), return_state=True).is_completed()
    assert len(triggers) == 1


_CLAIM = """
import os, sys
from pathlib import Path
from plumbline.tasks.params.layers import (load_params)
from plumbline.tasks.operations.admit_run import admit_run
root = Path(sys.argv[1])
assert admit_run(root, load_params(root)[0]).admitted
os._exit(9)
"""


@pytest.mark.long
def test_the_claim_of_a_killed_run_is_taken_over_by_the_next_poll(root: Path, triggers: list[Any]) -> None:
    assert subprocess.run([sys.executable, "-c", _CLAIM, str(root)], check=False).returncode == 9
    assert fresh.poll_freshness(str(root), return_state=True).is_completed()
    assert [run.outcome for run in runs(_database(root))] == ["killed", "completed"]
    assert len(triggers) == 1


def test_a_run_that_an_event_started_waits_for_the_workspace(root: Path, triggers: list[Any]) -> None:
    """A person's run holds the workspace for two seconds: nothing is claimed meanwhile."""
    open_claims = []
    holding, release = threading.Event(), threading.Event()

    def hold() -> None:
        with exclusive_run(root):
            holding.set()
            release.wait(60)

    def let_go() -> None:
        open_claims.append(len(runs(_database(root))))
        release.set()

    holder, timer = threading.Thread(target=hold), threading.Timer(2.0, let_go)
    holder.start()
    holding.wait()
    timer.start()
    state = _on_event(root)
    holder.join()
    assert state.is_completed()
    assert (open_claims, len(triggers)) == ([0], 1)


def test_the_poll_does_not_wait_and_loses_nothing(root: Path, triggers: list[Any]) -> None:
    with exclusive_run(root):
        state = fresh.poll_freshness(str(root), return_state=True)
    assert (state.name, triggers) == (fresh.NOT_STARTED, [])
    assert "another run is under way" in str(state.message)
    assert fresh.poll_freshness(str(root), return_state=True).is_completed()
    assert len(triggers) == 1


def test_a_workspace_taken_in_between_gives_the_claim_back(
    root: Path, triggers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Free when asked, taken when the run begins: the claim is released as if it had never been, then made anew."""
    loop, tries = fresh.retrain, []

    def taken_once(root: str, trigger: Any) -> Registered:
        tries.append(trigger)
        if len(tries) == 1:
            raise WorkspaceBusy("another run is under way")
        return loop(root, trigger)

    monkeypatch.setattr(fresh, "retrain", taken_once)
    assert _on_event(root).is_completed()
    assert [run.outcome for run in runs(_database(root))] == ["released", "completed"]


def test_a_poll_without_a_server_to_send_to_still_starts_what_is_due(
    root: Path, triggers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")  # read by the outbox; the flow has its own setting
    assert fresh.poll_freshness(str(root), return_state=True).is_completed()
    assert len(triggers) == 1
    assert [entry.key for entry in outbox.pending(_database(root))] == ["finding/1"]
