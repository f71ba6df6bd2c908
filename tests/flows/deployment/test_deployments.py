"""Deployments on a real server, run by a real worker."""

from __future__ import annotations

import http.server
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import DeploymentFilter, FlowRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.schedules import CronSchedule
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling

from plumbline.flows import fresh
from plumbline.flows.deployment.deployment_file import render
from plumbline.flows.deployment.deployments import (
    FLOW_NAMES,
    NAMES,
    NOT_STARTED_NAME,
    SILENCE_S,
    ZOMBIES,
    apply,
    deployment_name,
    settle_automation,
    zombie_spec,
)
from plumbline.tasks.operations.admit_run import open_outbox
from plumbline.tasks.operations.announce import drain_outbox, request_retraining, workspace_id
from plumbline.tasks.operations.freshness.admission import runs
from plumbline.tasks.params.layers import load_params
from plumbline.tasks.params.schedule import check_cron
from plumbline.tasks.registry.store.client import Store
from plumbline.tasks.registry.versions.latest import latest_model
from tests.flows.conftest import Trained, Workspace, finding_event, is_gone, until, writers

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture
def client(server: str) -> Iterator[SyncPrefectClient]:
    with temporary_settings({PREFECT_API_URL: server}), get_client(sync_client=True) as client:
        yield client


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory, server: str) -> Workspace:
    """A workspace in which nothing ran."""
    workspace = Workspace(tmp_path_factory.mktemp("empty"), server)
    assert workspace.run("init", ".").code == 0
    return workspace


@pytest.fixture(scope="module")
def ready(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A trained workspace: a run of it reuses every stage. No quiet time, so that events start runs at once."""
    workspace = trained.copy(tmp_path_factory.mktemp("ready") / "copy")
    workspace.set_params("trigger.debounce_s=0", "trigger.max_runs_per_week=50")
    return workspace


@contextmanager
def _working(server: str, folder: Path, log: Path) -> Iterator[None]:
    """A worker of a workspace, as `plumbline up` starts it on a server of the user. It ends by itself when told to."""
    options = ("--name", log.stem, "--limit", "4", "--shared")
    command = [sys.executable, "-m", "plumbline.flows.deployment.worker", *options]
    environment = {**os.environ, "PREFECT_API_URL": server, "PREFECT_WORKER_QUERY_SECONDS": "1"}
    with log.open("wb") as said:
        process = subprocess.Popen(
            command,
            env=environment,
            cwd=folder,
            stdout=said,
            stderr=said,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(
                signal.SIGINT, signal.SIG_DFL
            ),  # as tasks.operations.services.launch does, and why
        )
    yield
    process.send_signal(signal.SIGTERM)
    try:
        assert process.wait(60) == 0, log.read_text()[-2000:]
    except subprocess.TimeoutExpired:  # a test failed, and its run is under way: a worker waits for its runs
        os.killpg(process.pid, signal.SIGKILL)
        raise


@pytest.fixture(scope="module")
def worker(server: str, ready: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The worker of the workspace in which events start runs."""
    with _working(server, ready.root, tmp_path_factory.mktemp("worker") / "ready.log"):
        yield


def _runs_of(client: SyncPrefectClient, workspace: Workspace, name: str) -> list[FlowRun]:
    full = deployment_name(name, workspace_id(workspace.root))
    return client.read_flow_runs(
        flow_run_filter=FlowRunFilter(), deployment_filter=DeploymentFilter.model_validate({"name": {"any_": [full]}})
    )


def _ids(client: SyncPrefectClient, workspace: Workspace) -> dict[str, list[str]]:
    """Everything of ours on the server: name -> ids, of which there must be one."""
    found: dict[str, list[str]] = {}
    for item in [*client.read_deployments(), *client.read_automations()]:
        if workspace_id(workspace.root) in item.name or item.name == ZOMBIES:
            found.setdefault(item.name, []).append(str(item.id))
    return found


def test_a_second_apply_changes_nothing(empty: Workspace, client: SyncPrefectClient) -> None:
    """Five deployments, two event triggers and the automation for dead runs, each once."""
    first = empty.run("deploy", "--json")
    assert first.code == 0, first.err
    assert [row["name"] for row in first.payload["deployments"]] == list(NAMES)
    before = _ids(client, empty)
    assert len(before) == 8
    assert {len(ids) for ids in before.values()} == {1}

    assert empty.run("deploy", "--json").payload["changes"] == []
    assert _ids(client, empty) == before


def test_a_changed_schedule_changes_one_deployment_and_a_pause_by_hand_stays(
    empty: Workspace, client: SyncPrefectClient
) -> None:
    empty.run("deploy")
    before = _ids(client, empty)
    name = f"retrain/{deployment_name('retrain', workspace_id(empty.root))}"
    client.pause_deployment(client.read_deployment_by_name(name).id)

    done = empty.run("schedule", "0 3 * * 1", "--timezone", "Europe/Berlin", "--json")
    assert done.code == 0, done.err
    assert len(done.payload["next"]) == 3
    assert {moment[11:16] for moment in done.payload["next"]} == {"03:00"}
    assert load_params(empty.root)[0].schedule.retrain_cron == "0 3 * * 1"
    found = client.read_deployment_by_name(name)
    assert found.paused
    assert [(item.schedule.cron, item.schedule.timezone) for item in found.schedules] == [
        ("0 3 * * 1", "Europe/Berlin")
    ]
    assert _ids(client, empty) == before

    assert empty.run("schedule", "--off", "--timezone", "UTC").code == 0
    assert client.read_deployment_by_name(name).schedules == []
    client.resume_deployment(found.id)


def test_the_file_is_the_description(empty: Workspace) -> None:
    assert {name: (REPOSITORY / name).read_text() for name in render()} == render()


def test_what_the_file_deploys_is_what_apply_wants(
    tmp_path: Path, server: str, empty: Workspace, client: SyncPrefectClient
) -> None:
    """`prefect deploy --all` on a server without them; then `apply` for the same workspace finds nothing to change."""
    empty.run("deploy")  # the pool, and the automation of the server
    workspace = Workspace(tmp_path, server)
    assert workspace.run("init", ".").code == 0
    environment = {
        **os.environ,
        "PREFECT_API_URL": server,
        "PLUMBLINE_ROOT": str(tmp_path),
        "PLUMBLINE_WORKSPACE": workspace_id(tmp_path),
    }
    command = [
        sys.executable,
        "-m",
        "prefect",
        "--no-prompt",
        "deploy",
        "--all",
        "--prefect-file",
        "infra/prefect.yaml",
    ]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(_ids(client, workspace)) == 8
    with temporary_settings({PREFECT_API_URL: server}):
        assert apply(tmp_path, load_params(tmp_path)[0]) == []


@pytest.mark.long
def test_a_schedule_yields_a_run_that_a_worker_completes(
    empty: Workspace, server: str, client: SyncPrefectClient, tmp_path: Path
) -> None:
    """The poll, every minute: nothing waits, so it ends well and says so."""
    empty.set_params("schedule.poll_cron='* * * * *'")
    assert empty.run("deploy").code == 0

    def completed() -> list[FlowRun]:
        return [run for run in _runs_of(client, empty, "poll-freshness") if run.state and run.state.is_completed()]

    with _working(server, empty.root, tmp_path / "empty.log"):
        run = until(completed)[0]
    assert run.auto_scheduled
    assert (run.state.name, run.state.message) == (fresh.NOT_STARTED, "nothing new waits")
    empty.set_params("schedule.poll_cron='0 0 1 1 *'")
    assert empty.run("deploy").code == 0


@pytest.mark.long
def test_an_event_gives_one_run_also_when_it_is_sent_again(
    ready: Workspace, worker: None, client: SyncPrefectClient
) -> None:
    """The run registers a version that names the event; the same event again, and a poll, start nothing."""
    ready.set_params("schedule.poll_cron='0 0 1 1 *'", "gate.min_prompts=17")  # a new verdict makes a new version
    assert ready.run("deploy").code == 0
    params, _ = load_params(ready.root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_API_URL", ready.server)
        request_retraining(ready.root, params, key="finding/1", why="win rate fell", evidence={"n": 1})
        (entry,) = drain_outbox(ready.root, params)

    def ended() -> list[FlowRun]:
        found = _runs_of(client, ready, "retrain-on-fresh")
        return [run for run in found if run.state and run.state.is_final()]

    (run,) = until(ended)
    assert run.state is not None
    assert run.state.is_completed(), run.state.message
    assert "win rate fell" in str(run.state.message)
    model = latest_model(Store(ready.root, params.registry))
    assert model is not None
    assert model.manifest["trigger_event_id"] == entry.event_id
    assert {"kind": "event", "key": "finding/1", "keys": ["finding/1"]}.items() <= model.manifest["trigger"].items()

    client._client.post("/events", json=[finding_event(ready.root, entry)]).raise_for_status()
    polled = ready.run("run", "poll-freshness", "--wait", "--json")
    assert (polled.code, polled.payload["state"]) == (0, fresh.NOT_STARTED), polled.err
    until(lambda: all(run.state.is_final() for run in _runs_of(client, ready, "retrain-on-fresh") if run.state))
    assert [run.outcome for run in runs(open_outbox(ready.root, params))] == ["completed"]


@pytest.mark.long
def test_a_lost_event_costs_a_poll_not_a_run(ready: Workspace, worker: None, client: SyncPrefectClient) -> None:
    """No server was there when it was told: the poll sends the event and starts the run, once."""
    assert ready.run("deploy").code == 0
    params, _ = load_params(ready.root)
    engine = open_outbox(ready.root, params)
    before = len(runs(engine))
    with pytest.MonkeyPatch.context() as patch, temporary_settings(restore_defaults={PREFECT_API_URL}):
        patch.delenv("PREFECT_API_URL", raising=False)
        lost = request_retraining(ready.root, params, key="finding/lost", why="drift", evidence={})
    assert lost.emitted_at is None
    polled = ready.run("run", "poll-freshness", "--wait", "--json")
    assert polled.code == 0, polled.err
    # Whichever of the two asks first is let in; the other finds that the key has, or had, its run.
    until(lambda: _outcomes(engine, before) == ["completed"])
    until(lambda: all(run.state.is_final() for run in _runs_of(client, ready, "retrain-on-fresh") if run.state))
    assert _outcomes(engine, before) == ["completed"]


def _outcomes(engine: Any, after: int) -> list[str | None]:
    return [run.outcome for run in runs(engine)[after:]]


@pytest.mark.long
def test_a_cancel_ends_the_trainer_and_the_next_run_goes_on(
    trained: Trained, server: str, client: SyncPrefectClient, tmp_path: Path
) -> None:
    """A hundred times the epochs: the end of the run must not wait for that of the stage."""
    workspace = trained.copy(tmp_path / "copy")
    workspace.set_params("finetune.dpo.num_train_epochs=100")
    assert workspace.run("deploy").code == 0
    with _working(server, workspace.root, tmp_path / "cancel.log"):
        started = workspace.run("run", "retrain", "--json").payload
        log = workspace.root / ".plumbline/logs/finetune.log"
        checkpoints = ".plumbline/work/finetune/run-*/checkpoint-*/sealed.json"
        until(lambda: next(workspace.root.glob(checkpoints), None))
        (trainer,) = writers(log)
        client.set_flow_run_state(UUID(started["flow_run_id"]), Cancelling())
        until(lambda: is_gone(trainer))
        ended = until(lambda: (run := client.read_flow_run(started["flow_run_id"])).state.is_final() and run)
    assert ended.state.is_cancelled()
    assert writers(log) == []
    assert workspace.hashes() == trained.hashes()
    workspace.set_params("finetune.dpo.num_train_epochs=1")
    assert workspace.run("retrain", "--json").redone == []


_IDLE_THEN_ASLEEP = """
import time
from prefect import flow
from prefect.states import Completed

@flow(name="poll-freshness")
def idle():
    return Completed(name="NotStarted")

@flow(name="retrain")
def asleep():
    time.sleep(600)

idle(return_state=True)
asleep()
"""


@pytest.fixture
def short_silence(client: SyncPrefectClient) -> Iterator[float]:
    """The automation for dead runs with 10 s, the least that Prefect takes; then with the usual 90 s again."""
    from prefect.events.schemas.automations import AutomationCore

    list(settle_automation(client, AutomationCore.model_validate(zombie_spec(silence_s=10))))
    yield 10
    list(settle_automation(client, AutomationCore.model_validate(zombie_spec())))


@pytest.mark.long
def test_a_run_killed_outside_a_worker_is_marked_as_crashed(
    server: str, client: SyncPrefectClient, short_silence: float
) -> None:
    """SIGKILL leaves it Running until the automation sees it; a run that ended before it keeps its end."""
    known = {run.id for run in client.read_flow_runs()}
    environment = {**os.environ, "PREFECT_API_URL": server}
    with subprocess.Popen([sys.executable, "-c", _IDLE_THEN_ASLEEP], env=environment) as process:

        def beating() -> list[FlowRun]:
            """Both runs, once the server has heartbeats of both."""
            wanted = {"filter": {"event": {"name": ["prefect.flow-run.heartbeat"]}}, "limit": 50}
            beats = client._client.post("/events/filter", json=wanted).json()["events"]
            ids = {event["resource"]["prefect.resource.id"].removeprefix("prefect.flow-run.") for event in beats}
            runs = [run for run in client.read_flow_runs() if run.id not in known and run.deployment_id is None]
            return runs if len(runs) == 2 and {str(run.id) for run in runs} <= ids else []

        try:
            found = {run.state_name: run.id for run in until(beating)}
        finally:
            process.kill()
    crashed = until(lambda: (now := client.read_flow_run(found["Running"])).state and now.state.is_crashed() and now)
    assert f"no heartbeat for {short_silence:g} seconds" in crashed.state.message
    assert client.read_flow_run(found[fresh.NOT_STARTED]).state_name == fresh.NOT_STARTED


def test_the_automation_for_dead_runs_fits_our_flows_and_heartbeats() -> None:
    """Three heartbeats of 30 s; its flows by the names they have; a run that found nothing to do has ended."""
    from prefect.flows import load_flow_from_entrypoint

    from plumbline.flows.deployment.deployments import describe
    from plumbline.tasks.params.whole import Params

    assert SILENCE_S == 90
    assert fresh.NOT_STARTED == NOT_STARTED_NAME
    found = [
        load_flow_from_entrypoint(item.entrypoint, use_placeholder_flow=False) for item in describe(Params(), "/w")
    ]
    assert tuple(flow.name for flow in found) == FLOW_NAMES


@pytest.mark.parametrize(
    ("cron", "expected"),
    [
        ("0 25 * * 1", "hours to 23"),
        ("every day", "expected five fields"),
        ("0 0 3 * * 1", "expected five fields"),
        ("0 3 31 2 *", "a day that no month has"),
    ],
)
def test_a_wrong_cron_is_refused_with_what_to_write(empty: Workspace, cron: str, expected: str) -> None:
    before = (empty.root / "params.yaml").read_bytes()
    done = empty.run("schedule", cron, "--json")
    assert (done.code, done.payload["error"]["kind"]) == (2, "ParamsError")
    assert "schedule.retrain_cron" in done.err
    assert expected in done.err
    assert (empty.root / "params.yaml").read_bytes() == before


@pytest.mark.parametrize(
    "cron",
    [
        *("0 3 * * 1", "*/5 * * * *", "0 6 * * *", "@daily", "@reboot", "0 0 * * MON-FRI", "0 0 L * *", "0 0 * * 1#3"),
        *("60 * * * *", "a b c d e", "R * * * *", "0 h * * *", "* * * * 8", "*/0 * * * *", "5-1 * * * *", "0 24 * * *"),
    ],
)
def test_a_schedule_is_taken_where_prefect_takes_it(cron: str) -> None:
    """The check asks croniter and not Prefect, whose scheduler holds a copy of croniter."""
    assert accepted(check_cron, cron) == accepted(lambda cron: CronSchedule(cron=cron), cron)


def accepted(check: Callable[[str], object], cron: str) -> bool:
    """Whether a check lets a schedule pass."""
    try:
        check(cron)
    except ValueError:
        return False
    return True


def test_a_wrong_time_zone_names_the_nearest(empty: Workspace) -> None:
    done = empty.run("schedule", "0 3 * * 1", "--timezone", "Europe/Berln")
    assert done.code == 2
    assert "did you mean Europe/Berlin" in done.err


def test_an_unknown_deployment_names_the_known_ones(empty: Workspace) -> None:
    done = empty.run("run", "retrian")
    assert done.code == 2
    assert all(name in done.err for name in NAMES)


def test_an_unknown_parameter_names_the_known_ones(empty: Workspace) -> None:
    empty.run("deploy")
    done = empty.run("run", "promote", "--param", "modell=x")
    assert done.code == 2
    assert "modell" in done.err
    assert "model" in done.err.split("expected any of")[1]


@pytest.mark.parametrize("command", [("deploy",), ("run", "retrain")])
def test_without_a_server_the_command_says_how_to_start_one(empty: Workspace, command: tuple[str, ...]) -> None:
    done = Workspace(empty.root, "http://127.0.0.1:9/api").run(*command)
    assert done.code == 2
    assert "plumbline up" in done.err
    assert "http://127.0.0.1:9/api" in done.err


class _OldServer(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b'"2.20.4"' if self.path.endswith("version") else b"true"
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_a_server_of_another_version_is_refused(empty: Workspace) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _OldServer) as old:
        threading.Thread(target=old.serve_forever, daemon=True).start()
        done = Workspace(empty.root, f"http://127.0.0.1:{old.server_port}/api").run("deploy")
        old.shutdown()
    assert done.code == 2
    assert "found 2.20.4" in done.err
