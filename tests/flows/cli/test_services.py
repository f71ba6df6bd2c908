"""The services of a workspace as real processes on free ports: started once, then broken in every way."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import psutil
import pytest

from plumbline.data_contracts.errors import OperationsError, ParamsError, UsageError
from plumbline.flows.cli.services import planned
from plumbline.flows.graph import environment
from plumbline.tasks.operations.services import operate
from plumbline.tasks.operations.services.addresses import KnownServer, known_server
from plumbline.tasks.operations.services.health import require_version
from plumbline.tasks.operations.services.plan import Plan
from plumbline.tasks.operations.services.processes import MARK, SERVICE_MARK, marked, service_of
from plumbline.tasks.params.document import save_params
from plumbline.tasks.params.layers import load_params
from plumbline.tasks.registry.store.client import Store
from plumbline.tasks.registry.versions.registered import all_versions
from tests.flows.conftest import TINY, Done, Trained, Workspace, is_gone, until, writers

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Services:
    """A workspace with its services up. Tests leave them up; `up` brings back what they ended."""

    root: Path

    @property
    def plan(self) -> Plan:
        return planned(self.root, load_params(self.root)[0])

    def up(self) -> list[str]:
        return operate.bring_up(self.plan)

    def pids(self) -> dict[str, int | None]:
        return {row.name: row.pid for row in operate.look(self.plan)}

    def well(self) -> bool:
        return all(row.ok for row in operate.look(self.plan))

    def run(self, *arguments: object) -> Done:
        return Workspace(self.root, "").run(*arguments)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for probe in sockets:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in sockets]
    for probe in sockets:
        probe.close()
    return ports


def _workspace(root: Path, *settings: str) -> Services:
    prefect, mlflow = _free_ports(2)
    ports = [f"services.prefect_port={prefect}", f"services.mlflow_port={mlflow}", "services.start_timeout_s=300"]
    assert Workspace(root, "").run("init", ".").code == 0
    save_params(root, load_params(root, settings=[*ports, *settings])[1])
    return Services(root)


def _port_of(process: psutil.Process) -> int:
    (port,) = [item.laddr[1] for item in process.net_connections("tcp") if item.status == psutil.CONN_LISTEN]
    return int(port)


@pytest.fixture(scope="module")
def no_server_of_the_user() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_API_URL", "")
        yield


@pytest.fixture(autouse=True)
def no_server_of_the_test_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that ran inside this process point it at the services."""
    monkeypatch.setenv("PREFECT_API_URL", "")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "")


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory, no_server_of_the_user: None) -> Iterator[Services]:
    # blanks and signs that configuration files give a meaning to, and a path too long for a Unix socket
    made = _workspace(tmp_path_factory.mktemp("up 100% ; 'so' #" + "long" * 12))
    try:
        assert made.up() == []
        yield made
    finally:
        operate.bring_down(made.root, 20)
        assert marked(made.plan.folder) == []


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that another process holds."""
    code = "import socket,time; s=socket.create_server(('127.0.0.1',0)); print(s.getsockname()[1],flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        yield int(holder.stdout.readline())
        holder.terminate()


@pytest.fixture
def old_server() -> Iterator[int]:
    """What a Prefect server of another version answers."""

    class Old(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'"3.1.4"' if self.path.endswith("version") else b"true")

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Old)
    Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


# --- up --------------------------------------------------------------------------------------------------------------


def test_all_are_healthy_and_private(services: Services) -> None:
    rows = operate.look(services.plan)
    assert [(row.name, row.ok) for row in rows] == [
        ("prefect", True),
        ("mlflow", True),
        ("worker", True),
    ]
    listening = {
        item.laddr[:2]
        for process in marked(services.plan.folder)
        for item in process.net_connections("tcp")
        if item.status == psutil.CONN_LISTEN
    }
    assert {host for host, _ in listening} == {"127.0.0.1"}
    assert {service.port for service in services.plan.services if service.port} <= {port for _, port in listening}
    assert services.plan.folder.stat().st_mode & 0o077 == 0


def test_a_second_up_changes_nothing(services: Services) -> None:
    before = services.pids()
    assert services.up() == []
    assert services.pids() == before
    assert None not in before.values()


def test_the_processes_have_the_environment_of_the_file(services: Services) -> None:
    for pid in services.pids().values():
        found = psutil.Process(pid).environ()
        assert {name: found.get(name) for name in environment.ENVIRONMENT} == environment.ENVIRONMENT
    prefect_home = psutil.Process(services.pids()["prefect"]).environ()["PREFECT_HOME"]
    assert Path(prefect_home, "prefect.db").is_file()


def test_later_commands_find_the_server(services: Services) -> None:
    assert known_server(services.root) == KnownServer(services.plan.prefect_api_url, own=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PREFECT_API_URL", raising=False)
        environment.use_services(services.root)
        assert os.environ["PREFECT_API_URL"] == services.plan.prefect_api_url
        patch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
        environment.use_services(services.root)
        assert os.environ["PREFECT_API_URL"] == "http://127.0.0.1:9/api"


def test_status_as_json(services: Services) -> None:
    done = services.run("status", "--json")
    assert done.code == 0, done.err
    assert {row["name"] for row in done.payload["services"]} == {"prefect", "mlflow", "worker"}
    assert all(Path(row["log"]).is_file() and row["uptime_s"] > 0 for row in done.payload["services"])


# --- what is killed comes back ---------------------------------------------------------------------------------------


@pytest.mark.long
def test_killed_servers_are_started_again(services: Services) -> None:
    for name in ("prefect", "mlflow"):
        psutil.Process(services.pids()[name]).kill()
    until(services.well, every_s=0.5)
    after = services.pids()
    assert services.plan.mlflow_url == f"http://127.0.0.1:{_port_of(psutil.Process(after['mlflow']))}"
    assert {service_of(process) for process in marked(services.plan.folder)} == {None, *after}


@pytest.mark.long
def test_after_the_supervisor_was_killed_up_ends_what_it_left(services: Services) -> None:
    before = services.pids()
    supervisor = int((services.plan.folder / "supervisord.pid").read_text())
    os.kill(supervisor, signal.SIGKILL)
    until(lambda: not psutil.pid_exists(supervisor) or psutil.Process(supervisor).status() == psutil.STATUS_ZOMBIE)
    assert services.run("status").code == 1
    (remark,) = services.up()
    assert "an earlier supervisor left behind" in remark
    after = services.pids()
    assert services.well()
    assert not set(after.values()) & set(before.values())
    assert not any(psutil.pid_exists(pid) for pid in before.values() if pid is not None)


def test_a_changed_port_starts_that_service_alone_again(services: Services) -> None:
    before = services.pids()
    (port,) = _free_ports(1)
    save_params(services.root, load_params(services.root, settings=[f"services.mlflow_port={port}"])[1])
    marks = {**os.environ, MARK: str(services.plan.folder), SERVICE_MARK: "intake"}
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env=marks) as left:
        outlived = psutil.Process(left.pid)
        assert services.up() == ["mlflow: changed, started again", "ended 1 processes that outlived their service"]
        assert is_gone(outlived)
    after = services.pids()
    assert {name for name in before if before[name] != after[name]} == {"mlflow"}
    assert services.plan.mlflow_url == f"http://127.0.0.1:{port}"
    assert services.well()


@pytest.mark.long
def test_a_run_under_way_is_made_good_when_all_around_it_is_killed(services: Services, trained: Trained) -> None:
    """Server and MLflow: the run goes on. The worker: the run ends with it, trainer and all; the next one goes on."""
    workspace = Workspace(services.root, str(services.plan.prefect_api_url))
    (batch,) = (trained.root / "data/raw/human_pairs").glob("*.jsonl")
    assert workspace.run("ingest", "human_pairs", batch).code == 0
    workspace.set_params("recipe=sample_world", overlays=[TINY])  # as the trained workspace
    assert workspace.run("deploy").code == 0
    assert workspace.run("run", "retrain", "--json").code == 0

    until(lambda: next(services.root.glob("models/.reference.draft-*"), None))
    pids = services.pids()
    for name in ("prefect", "mlflow"):
        psutil.Process(pids[name]).kill()
    log = services.root / ".plumbline/logs/finetune.log"
    (trainer,) = until(lambda: writers(log))
    until(lambda: list(services.root.glob(".plumbline/work/finetune/run-*/checkpoint-*/sealed.json")), every_s=0.02)
    psutil.Process(pids["worker"]).kill()
    until(lambda: is_gone(trainer))
    assert "models/policy" not in workspace.hashes()

    until(services.well, every_s=0.5)
    again = workspace.run("run", "retrain", "--wait", "--json")
    assert (again.code, again.payload["state"]) == (0, "Completed"), again.err
    assert workspace.hashes() == trained.hashes()
    params, _ = load_params(services.root)
    store = Store(services.root, params.registry)
    assert [version.number for version in all_versions(store, params.registry.model_name)] == ["1"]
    assert writers(log) == []


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_port_in_use_is_named_with_its_holder(tmp_path: Path, taken: int) -> None:
    made = _workspace(tmp_path, f"services.mlflow_port={taken}")
    with pytest.raises(UsageError) as refused:
        made.up()
    assert f"services.mlflow_port: expected port {taken}" in str(refused.value)
    assert "pid " in str(refused.value)
    assert sys.executable in str(refused.value)
    assert marked(made.plan.folder) == []


def test_a_server_of_another_version_is_named(tmp_path: Path, old_server: int) -> None:
    made = _workspace(tmp_path, f"services.prefect_port={old_server}")
    with pytest.raises(UsageError, match=r"a Prefect server 3\.1\.4"):
        made.up()
    with pytest.raises(UsageError, match=r"expected a Prefect server 3\.8\.\d+ .* found 3\.1\.4"):
        require_version(f"http://127.0.0.1:{old_server}/api", "PREFECT_API_URL")


def test_a_server_of_the_user_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = _workspace(tmp_path)
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with pytest.raises(UsageError, match="Unset PREFECT_API_URL"):
        made.up()


def test_a_full_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = _workspace(tmp_path)
    monkeypatch.setattr(operate, "MIN_FREE_BYTES", 1 << 60)
    with pytest.raises(OperationsError, match="MB of free disk"):
        made.up()


def test_what_does_not_start_shows_its_log(tmp_path: Path) -> None:
    made = _workspace(tmp_path, "services.prefect=true", "services.worker=false", "services.restarts=0")
    broken = replace(made.plan.services[0], command=(sys.executable, "-c", "raise SystemExit('no such thing')"))
    try:
        with pytest.raises(OperationsError, match=r"prefect\.log:\n +no such thing"):
            operate.bring_up(replace(made.plan, services=(broken,)))
    finally:
        operate.bring_down(made.root, 5)


def test_one_port_for_two_is_refused(tmp_path: Path) -> None:
    assert Workspace(tmp_path, "").run("init", ".").code == 0
    with pytest.raises(ParamsError, match="are both 4444"):
        load_params(tmp_path, settings=["services.prefect_port=4444", "services.mlflow_port=4444"])


def test_the_env_file_is_the_table() -> None:
    lines = (ROOT / "infra/plumbline.env").read_text().splitlines()
    assert dict(line.split("=", 1) for line in lines if line and not line.startswith("#")) == environment.ENVIRONMENT


# --- down ------------------------------------------------------------------------------------------------------------


def test_down_leaves_nothing(services: Services) -> None:
    pids = [process.pid for process in marked(services.plan.folder)]
    assert len(pids) >= 4  # the supervisor and three services
    done = services.run("down", "--json")
    assert done.code == 0, done.err
    assert done.payload["left_over"] == []
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert known_server(services.root) is None
    assert services.run("down").code == 0
    assert services.run("status").code == 1
