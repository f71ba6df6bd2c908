"""The worker on a real server: one worker for all tests, the last of which kills it."""

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

    def process_of(self, run: FlowRun) -> psutil.Process:
        """The process of a run that is under way: the worker's only child, with a session of its own."""
        (found,) = self.process.children()
        assert self.client.read_flow_run(run.id).infrastructure_pid == str(found.pid)
        assert os.getsid(found.pid) == found.pid
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


def _until(condition: Callable[[], Any], seconds: float = 300.0) -> Any:
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.3)
    return found


@pytest.fixture(scope="module")
def worker(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    workspace = Workspace(tmp_path_factory.mktemp("worker"), server)
    assert workspace.run("init", ".").code == 0
    workspace.set_params("schedule.poll_cron='0 0 1 1 *'", "schedule.monitor_cron='0 0 1 1 *'")
    assert workspace.run("deploy").code == 0
    for name in ("plumbline", "tasks", "random"):  # a user's own modules, which take no one's place
        (workspace.root / f"{name}.py").write_text("raise SystemExit('a file of the user was imported')")
    options = ("--name", "one", "--limit", "2", "--shared")
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


def test_a_run_imports_no_file_of_the_folder(worker: Worker) -> None:
    worker.until(worker.start("poll-freshness"), fresh.NOT_STARTED)


def test_work_of_another_workspace_on_a_shared_server_is_left_to_it(worker: Worker) -> None:
    """Its deployment has the id of another workspace in its name; a worker of that workspace would take it."""
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


def test_a_killed_run_has_crashed(worker: Worker) -> None:
    with exclusive_run(worker.workspace.root):
        run = worker.until(worker.start("retrain-on-fresh"), "Running")
        worker.process_of(run).kill()
        crashed = worker.until(run, "Crashed")
    assert crashed.state is not None
    assert "-9" in str(crashed.state.message)


def test_a_cancelled_run_ends_as_cancelled(worker: Worker) -> None:
    with exclusive_run(worker.workspace.root):
        run = worker.until(worker.start("retrain-on-fresh"), "Running")
        process = worker.process_of(run)
        worker.client.set_flow_run_state(run.id, Cancelling())
        worker.until(run, "Cancelled")
    psutil.wait_procs([process], 30)
    assert not process.is_running()


def test_a_terminated_run_is_recorded_and_its_worker_ends(worker: Worker) -> None:
    """As `plumbline down` does: SIGTERM to the run first. Its state is recorded, and the worker ends by itself."""
    with exclusive_run(worker.workspace.root):
        run = worker.until(worker.start("retrain-on-fresh"), "Running")
        worker.process_of(run).send_signal(signal.SIGTERM)
        worker.until(run, "Crashed")
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(60) == 0
