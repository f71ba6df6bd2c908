"""Whoever may write to Prefect's API still cannot have the worker run anything but what this workspace registered."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from prefect.workers.process import ProcessWorker

from plumbline.flows import fresh
from plumbline.flows.deployment.deployments import deployment_name, job_variables
from plumbline.tasks.operations.announce import workspace_id
from plumbline.tasks.operations.services.plan import WORK_POOL
from tests.security.conftest import Up

Attempt = Callable[["Server"], Any]
EVIL = """
import pathlib
pathlib.Path({marker!r}).touch()
from prefect import flow
@flow(name="poll-freshness", validate_parameters=False)
def poll_freshness(root="."):
    return 1
"""


class Server:
    """The API of the workspace's server, as somebody uses it who has its credentials; `marker` shows that code ran."""

    def __init__(self, up: Up, client: SyncPrefectClient, folder: Path) -> None:
        self.up, self.client, self.folder, self.marker = up, client, folder, folder / "it ran"
        self.name = deployment_name("poll-freshness", workspace_id(up.root))
        self.mine = client.read_deployment_by_name(f"poll-freshness/{self.name}")
        (folder / "evil.py").write_text(EVIL.format(marker=str(self.marker)))

    def deploy(self, name: str = "foreign", **changes: Any) -> UUID:
        """A deployment like ours but for what is changed."""
        given = {
            "entrypoint": self.mine.entrypoint,
            "parameters": {"root": str(self.up.root)},
            "job_variables": job_variables(str(self.up.root)),
            "work_pool_name": WORK_POOL,
        }
        return self.client.create_deployment(self.mine.flow_id, name, **{**given, **changes})

    def run(self, deployment: UUID, **options: Any) -> Any:
        """Start a run of it and wait for its end."""
        started = self.client.create_flow_run_from_deployment(deployment, **options)
        until = time.monotonic() + 120
        while not ((found := self.client.read_flow_run(started.id)).state or started.state).is_final():
            assert time.monotonic() < until, found.state
            time.sleep(0.3)
        return found.state


@pytest.fixture(scope="module")
def server(up: Up, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings: Any = {
        PREFECT_API_URL: up.plan.prefect_api_url,
        PREFECT_API_AUTH_STRING: up.credentials["prefect"],
    }
    with temporary_settings(settings), get_client(sync_client=True) as client:
        yield Server(up, client, tmp_path_factory.mktemp("evil"))


def _evil(server: Server) -> str:
    return f"{server.folder / 'evil.py'}:poll_freshness"


def _shell(server: Server) -> list[dict[str, Any]]:
    return [{"prefect.deployments.steps.run_shell_script": {"script": f"touch '{server.marker}'"}}]


ATTEMPTS: dict[str, tuple[str, Attempt]] = {
    "an entrypoint of their own": (
        "not registered by this workspace",
        lambda server: server.run(server.deploy(entrypoint=_evil(server))),
    ),
    "their entrypoint under our name": (
        "its entrypoint is",
        lambda server: server.run(server.deploy(server.name, entrypoint=_evil(server))),
    ),
    "our flow under another name": (
        "not registered by this workspace",
        lambda server: server.run(server.deploy("poll-freshness-0123456789abcdef")),
    ),
    "pull steps": (
        "fetches code from elsewhere",
        lambda server: server.run(server.deploy(server.name, pull_steps=_shell(server))),
    ),
    "a path": (
        "fetches code from elsewhere",
        lambda server: server.run(server.deploy(server.name, path=str(server.folder))),
    ),
    "a command of the run": (
        "a command of its own",
        lambda server: server.run(server.mine.id, job_variables={"command": f"touch '{server.marker}'"}),
    ),
    "a folder of the run": (
        "its working folder is",
        lambda server: server.run(server.mine.id, job_variables={"working_dir": str(server.folder)}),
    ),
    "an environment of the run": (
        "its environment differs in PYTHONPATH",
        lambda server: server.run(server.mine.id, job_variables={"env": {"PYTHONPATH": str(server.folder)}}),
    ),
    "an environment with a dot": (
        "its environment differs in PYTHONSTARTUP",
        lambda server: server.run(server.mine.id, job_variables={"env.PYTHONSTARTUP": "/tmp/x.py"}),
    ),
    "a variable that Prefect tells": (
        "its environment differs in PREFECT__FLOW_ENTRYPOINT",
        lambda server: server.run(server.mine.id, job_variables={"env": {"PREFECT__FLOW_ENTRYPOINT": _evil(server)}}),
    ),
    "another workspace": (
        "its parameter root is",
        lambda server: server.run(server.mine.id, parameters={"root": str(server.folder)}),
    ),
}


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_what_the_workspace_did_not_register_is_not_run(server: Server, attempt: str) -> None:
    reason, try_it = ATTEMPTS[attempt]
    try:
        state = try_it(server)
    finally:
        assert server.up.root.is_dir()
        _restore(server)
    assert state.is_crashed(), state
    assert "refused" in state.message and reason in state.message
    assert not server.marker.exists()
    assert reason in (server.up.plan.folder / "worker.log").read_text()


def test_a_changed_pool_starts_nothing(server: Server) -> None:
    template = ProcessWorker.get_default_base_job_template()
    template["job_configuration"]["command"] = f"touch '{server.marker}'"
    server.client.update_work_pool(WORK_POOL, WorkPoolUpdate(base_job_template=template))
    try:
        deadline = time.monotonic() + 60
        while (
            "command of its own" not in (state := server.run(server.mine.id)).message
        ):  # the worker looks now and then
            assert time.monotonic() < deadline, state
            time.sleep(1)
    finally:
        whole = ProcessWorker.get_default_base_job_template()
        server.client.update_work_pool(WORK_POOL, WorkPoolUpdate(base_job_template=whole))
    assert not server.marker.exists()


def test_what_it_registered_runs(server: Server) -> None:
    until = time.monotonic() + 60
    while (state := server.run(server.mine.id)).name != fresh.NOT_STARTED:  # until the worker has the pool of before
        assert time.monotonic() < until, state


def _restore(server: Server) -> None:
    """Our deployment as `plumbline deploy` registers it."""
    from plumbline.flows.deployment.deployments import apply
    from plumbline.tasks.params.layers import load_params

    apply(server.up.root, load_params(server.up.root)[0])
