"""Announcing on a real Prefect server: nothing told is lost, whatever dies between two steps."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from plumbline.data_contracts.errors import OperationsError
from plumbline.flows.graph.workspaces import init_workspace
from plumbline.tasks.data.ingest_feedback import count_rows, ingest_feedback
from plumbline.tasks.operations.announce import (
    _confirmed,
    announce_batches,
    api_url,
    drain_outbox,
    open_outbox,
    reconcile,
    request_retraining,
    workspace_id,
)
from plumbline.tasks.operations.freshness.outbox import entry_states, pending
from plumbline.tasks.operations.services.temporary import TEMPORARY
from plumbline.tasks.params.layers import load_params
from plumbline.tasks.params.whole import Params

ROW = '{"prompt": "q %s?", "chosen": "yes", "rejected": "no"}\n'
CRASHES = {
    "after the batch": "plumbline.tasks.data.ingest_feedback.Versions.track",
    "after the version": "plumbline.tasks.operations.announce.outbox.put",
    "after the outbox row": "plumbline.tasks.operations.announce.drain_outbox",
    "after the event": "plumbline.tasks.operations.announce.outbox.mark_emitted",
}
CHILD = """
import os, sys
from pathlib import Path
from unittest.mock import patch
from plumbline.tasks.params.layers import (load_params)
from plumbline.tasks.operations.announce import announce_batches
from plumbline.tasks.data.ingest_feedback import ingest_feedback
import plumbline.tasks.data.ingest_feedback, plumbline.tasks.operations.announce
root = Path(sys.argv[1])
with patch(sys.argv[3], lambda *a, **k: os.kill(os.getpid(), 9)):
    batches = ingest_feedback(root, "human_pairs", [sys.argv[2]])
    announce_batches(root, load_params(root)[0], "human_pairs", batches, {})
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    init_workspace(tmp_path / "workspace")
    return tmp_path / "workspace"


@pytest.fixture
def params(root: Path) -> Params:
    # time enough on a busy machine: an unconfirmed event would stay pending, which is right and not what is tested
    return load_params(root, (), ["trigger.confirm_timeout_s=300"])[0]


@pytest.fixture
def reachable(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PREFECT_API_URL", server)
    return server


def feedback(root: Path, name: str = "a") -> Path:
    path = root.parent / f"{name}.jsonl"
    path.write_text(ROW % name)
    return path


def events(server: str, root: Path) -> list[dict[str, object]]:
    resource = f"plumbline.workspace.{workspace_id(root)}"
    query = {"filter": {"resource": {"id": [resource]}}, "limit": 50}
    found: list[dict[str, object]] = httpx.post(f"{server}/events/filter", json=query).json()["events"]
    return found


def test_a_batch_is_told_once_with_an_id_of_its_own(root: Path, params: Params, reachable: str) -> None:
    batches = ingest_feedback(root, "human_pairs", [feedback(root)])
    (entry,) = announce_batches(root, params, "human_pairs", batches, count_rows(batches))
    assert entry.emitted_at is not None and entry.key == f"human_pairs/{batches[0].digest[:16]}"
    (again,) = announce_batches(root, params, "human_pairs", batches, count_rows(batches))
    assert again == entry and drain_outbox(root, params) == []
    (event,) = events(reachable, root)
    assert event["id"] == entry.event_id and event["event"] == "preferences.fresh"
    payload = event["payload"]
    assert isinstance(payload, dict) and payload["rows"] == 1 and payload["root"] == str(root)
    assert payload["key"] == entry.key and payload["kind"] == "batch"


def test_a_finding_is_told_once(root: Path, params: Params, reachable: str) -> None:
    for _ in range(2):
        entry = request_retraining(root, params, key="win-rate/2026-48", why="win rate fell", evidence={"low": 0.4})
        told = drain_outbox(root, params)
    assert entry.emitted_at is not None and told == []
    assert [event["event"] for event in events(reachable, root)] == ["monitor.finding"]


def test_two_workspaces_of_one_server_tell_of_the_same_batch_each(
    root: Path, params: Params, reachable: str, tmp_path: Path
) -> None:
    """An id of the batch alone would be there already when the second one tells of it, and start nothing there."""
    other = tmp_path / "other"
    init_workspace(other)
    path = feedback(root)
    for workspace in (root, other):
        batches = ingest_feedback(workspace, "human_pairs", [path])
        (entry,) = announce_batches(workspace, params, "human_pairs", batches, {})
        assert [event["id"] for event in events(reachable, workspace)] == [entry.event_id]


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/api"])
def test_a_server_that_is_down_leaves_the_row_pending(
    root: Path, params: Params, server: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", url)
    batches = ingest_feedback(root, "human_pairs", [feedback(root)])
    with pytest.raises(OperationsError, match="Events stay in the outbox"):
        announce_batches(root, params, "human_pairs", batches, {})
    (waiting,) = pending(open_outbox(root, params))
    monkeypatch.setenv("PREFECT_API_URL", server)
    assert [entry.key for entry in drain_outbox(root, params)] == [waiting.key]
    assert len(events(server, root)) == 1


@pytest.mark.long
@pytest.mark.parametrize("step", CRASHES)
def test_kill_9_between_any_two_steps_loses_nothing(root: Path, params: Params, reachable: str, step: str) -> None:
    path = feedback(root, "crash")
    command = [sys.executable, "-c", CHILD, str(root), str(path), CRASHES[step]]
    child = subprocess.run(command, env={**os.environ, "PYTHONPATH": os.getcwd()}, capture_output=True, check=False)
    assert child.returncode == -9, child.stderr.decode()
    drain_outbox(root, params)
    (standing,) = entry_states(open_outbox(root, params))
    assert standing.entry.emitted_at is not None
    assert [event["id"] for event in events(reachable, root)] == [standing.entry.event_id]
    assert (root / "data/raw.dvc").read_text().count("nfiles: 1") == 1  # versioned


def test_a_batch_put_there_by_other_means_is_found(root: Path, params: Params) -> None:
    (root / "data/raw/human_pairs").mkdir(parents=True)
    (root / "data/raw/human_pairs/by-hand.jsonl").write_text(ROW % "h")
    (entry,) = reconcile(root, params)
    assert entry.payload["batch"] == "data/raw/human_pairs/by-hand.jsonl" and reconcile(root, params) == []


def test_an_answer_that_no_prefect_server_gives_is_named(root: Path, params: Params) -> None:
    """A proxy's page with status 200 is not taken for "nothing has arrived", and ends no thread with a KeyError."""
    import httpx

    page = httpx.MockTransport(lambda _: httpx.Response(200, text="<html>welcome</html>"))
    with (
        httpx.Client(transport=page, base_url="http://proxy/api") as client,
        pytest.raises(OperationsError, match="PREFECT_API_URL"),
    ):
        _confirmed(client, ["1"])


def test_a_temporary_server_is_told_nothing(root: Path, params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    """An event sent there would count as told and be lost with the server."""
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    assert api_url("http://127.0.0.1:8/api") == "http://127.0.0.1:9/api"
    monkeypatch.setenv(TEMPORARY, "http://127.0.0.1:9/api")
    assert api_url() is None
    request_retraining(root, params, key="finding/1", why="win rate fell", evidence={})
    with pytest.raises(OperationsError, match="stay in the outbox"):
        drain_outbox(root, params)
    assert [entry.key for entry in pending(open_outbox(root, params))] == ["finding/1"]
