"""The warm worker on a real server: one worker for all tests, the last of which kills it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling

from plumbline.flows import fresh
from plumbline.flows.deployment.deployments import deployment_name
from plumbline.flows.graph.workspaces import exclusive_run
from plumbline.tasks.operations.announce import workspace_id
from tests.flows.conftest import Workspace


@dataclass(frozen=True)
class Worker:
    """A worker in the folder of a workspace, and the server's client."""

    workspace: Workspace
    process: psutil.Process
    client: SyncPrefectClient

    def standby(self, other_than: int = 0) -> psutil.Process:
        """The process that waits, when the one that waited before and ran has gone; there is one at a time."""

        def waiting() -> psutil.Process | None:
            found = [child for child in self.process.children() if _is_standby(child) and child.pid != other_than]
            return found[0] if len(found) == 1 else None

        found: psutil.Process = _until(waiting)
        return found

    def start(self, name: str, **options: Any) -> FlowRun:
        full = f"{name}/{deployment_name(name, workspace_id(self.workspace.root))}"
        deployment = self.client.read_deployment_by_name(full)
        return self.client.create_flow_run_from_deployment(deployment.id, **options)

    def until(self, run: FlowRun, state: str) -> FlowRun:
        def reached() -> FlowRun | None:
            found = self.client.read_flow_run(run.id)
            assert found.state is not None
            assert found.state.name == state or not found.state.is_final(), found.state
            return found if found.state.name == state else None

        found: FlowRun = _until(reached)
        return found


def _is_standby(process: psutil.Process) -> bool:
    try:
        return "plumbline.flows.deployment.standby" in process.cmdline()
    except psutil.Error:  # it has just ended
        return False


def _until(condition: Callable[[], Any], seconds: float = 300.0) -> Any:
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.3)
    return found


@pytest.fixture(scope="module")
def worker(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    workspace = Workspace(tmp_path_factory.mktemp("warm"), server)
    assert workspace.run("init", ".").code == 0
    workspace.set_params("schedule.poll_cron='0 0 1 1 *'", "schedule.monitor_cron='0 0 1 1 *'")
    assert workspace.run("deploy").code == 0
    for name in ("plumbline", "tasks", "random"):  # a user's own modules, which take no one's place
        (workspace.root / f"{name}.py").write_text("raise SystemExit('a file of the user was imported')")
    options = ("--name", "warm", "--limit", "2", "--standbys", "1", "--shared")
    environment = {**os.environ, "PREFECT_API_URL": server, "PREFECT_WORKER_QUERY_SECONDS": "1"}
    with (workspace.root / "worker.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "plumbline.flows.deployment.worker", *options],
            env=environment,
            cwd=workspace.root,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    with temporary_settings({PREFECT_API_URL: server}), get_client(sync_client=True) as client:
        yield Worker(workspace, psutil.Process(process.pid), client)
    process.kill()
    process.wait(60)


def test_a_run_becomes_the_standby_and_another_waits(worker: Worker) -> None:
    first = worker.standby()
    run = worker.until(worker.start("poll-freshness"), fresh.NOT_STARTED)
    assert run.infrastructure_pid == str(first.pid)
    assert worker.standby(other_than=first.pid).is_running()


def test_work_of_another_workspace_on_a_shared_server_is_left_to_it(worker: Worker) -> None:
    """Its deployment has the id of another workspace in its name; a worker of that workspace would take it."""
    first = worker.standby()
    name = deployment_name("poll-freshness", workspace_id(worker.workspace.root))
    mine = worker.client.read_deployment_by_name(f"poll-freshness/{name}")
    theirs = worker.client.create_deployment(
        mine.flow_id, "poll-freshness-0123456789abcdef", work_pool_name="plumbline", entrypoint=mine.entrypoint
    )
    left = worker.client.create_flow_run_from_deployment(theirs)
    worker.until(worker.start("poll-freshness"), fresh.NOT_STARTED)  # asked for later, and done
    found = worker.client.read_flow_run(left.id)
    assert found.state is not None and found.state.is_scheduled()
    worker.client.delete_flow_run(left.id)
    worker.standby(other_than=first.pid)


def test_a_killed_run_has_crashed(worker: Worker) -> None:
    first = worker.standby()
    with exclusive_run(worker.workspace.root):
        run = worker.until(worker.start("retrain-on-fresh"), "Running")
        first.kill()
        crashed = worker.until(run, "Crashed")
    assert crashed.state is not None
    assert "-9" in str(crashed.state.message)


def test_a_cancelled_run_ends_as_cancelled(worker: Worker) -> None:
    first = worker.standby()
    with exclusive_run(worker.workspace.root):
        run = worker.until(worker.start("retrain-on-fresh"), "Running")
        worker.client.set_flow_run_state(run.id, Cancelling())
        worker.until(run, "Cancelled")
    psutil.wait_procs([first], 30)
    assert not first.is_running()


def test_a_standby_that_was_killed_is_no_harm(worker: Worker) -> None:
    first = worker.standby()
    first.send_signal(signal.SIGTERM)  # as `plumbline down` does
    psutil.wait_procs([first], 30)
    run = worker.until(worker.start("poll-freshness"), fresh.NOT_STARTED)
    assert run.infrastructure_pid != str(first.pid)
    assert worker.standby().is_running()


def test_standbys_end_with_a_worker_that_is_killed(worker: Worker) -> None:
    first = worker.standby()
    worker.process.kill()
    _, alive = psutil.wait_procs([first], 60)
    assert alive == []
