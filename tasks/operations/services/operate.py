"""Up, down and status of a workspace's services.

`up` in order:
1. refuse what cannot work before anything is touched: a full disk, ports that others hold, a server of another version;
2. end what a killed supervisor or service left behind, or take over the running one, changing only what differs;
3. start the servers, wait until they answer, register what the worker may run, then start the worker and the endpoint,
   and wait again;
4. write where they answer.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from plumbline.data_contracts.errors import OperationsError, UsageError
from plumbline.data_contracts.secrets import mask
from plumbline.tasks.operations.services.addresses import forget_addresses, write_addresses
from plumbline.tasks.operations.services.configuration import SUPERVISOR_LOG, log_path, socket_path, write_configuration
from plumbline.tasks.operations.services.credentials import make_credentials
from plumbline.tasks.operations.services.health import Health, check, require_server
from plumbline.tasks.operations.services.plan import Plan, Service, services_folder
from plumbline.tasks.operations.services.ports import refuse_taken_ports
from plumbline.tasks.operations.services.processes import end, end_all, marked, service_of
from plumbline.tasks.operations.services.supervisor import ProcessState, Supervisor

MIN_FREE_BYTES = 256 << 20  # databases, their write-ahead logs and the logs of a day
_TAIL_LINES = 15
_POLL_S = 0.5
_ALIVE = ("STARTING", "RUNNING")
_NEVER = ProcessState("not started", None, 0.0, "")


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """One service as it is now. `ok`: it runs, and answered as it should."""

    name: str
    state: str
    pid: int | None
    uptime_s: float | None
    url: str
    ok: bool
    health: str
    log: str


def bring_up(plan: Plan, register: Callable[[], None] = lambda: None) -> list[str]:
    """Start what is not running, start again what changed, and wait until all of it is healthy.

    `register` is called between the servers and the worker, which refuses what is not registered as it should be.
    Returns a remark for each thing that was found and done beside starting. Raises `UsageError` before anything is
    touched, `OperationsError` with the last lines of the log of what does not become healthy.
    """
    with _exclusive(plan.root):
        _refuse_full_disk(plan.root)
        _refuse_other_server(plan)
        refuse_taken_ports(plan.services, {process.pid for process in marked(plan.folder)})
        make_credentials(plan.folder)
        remarks = _supervise(plan)
        servers = [service for service in plan.services if service.probe in ("prefect", "mlflow")]
        _launch(plan, servers)
        register()
        _launch(plan, [service for service in plan.services if service not in servers])
        write_addresses(plan)
    return remarks


def bring_down(root: Path, stop_timeout_s: float) -> list[int]:
    """End the services gracefully, the last started first, and then what is left. Returns the pids that were left over.

    Flow runs get SIGTERM while the server can still record how they end.
    """
    with _exclusive(root):
        folder = services_folder(root)
        forget_addresses(root)
        supervisor = Supervisor(folder)
        if supervisor.identity() is not None:
            supervisor.stop("worker", stop_timeout_s)
            services = len(supervisor.states())
            supervisor.shut_down(services * (stop_timeout_s + 2))
        left = end_all(folder, stop_timeout_s)
        socket_path(folder).unlink(missing_ok=True)
        return left


def look(plan: Plan) -> list[ServiceStatus]:
    """The state of each planned service."""
    supervisor = Supervisor(plan.folder)
    states = supervisor.states() if supervisor.identity() is not None else {}
    return [_status(plan, service, states.get(service.name, _NEVER)) for service in plan.services]


def _status(plan: Plan, service: Service, state: ProcessState) -> ServiceStatus:
    health = check(plan, service) if state.pid is not None else Health(False, state.note or "does not run")
    return ServiceStatus(
        service.name,
        state.state.lower(),
        state.pid,
        max(0.0, time.time() - state.started) if state.pid is not None else None,
        service.url,
        health.ok and state.state in _ALIVE,
        health.note,
        str(log_path(plan, service.name)),
    )


@contextmanager
def _exclusive(root: Path) -> Iterator[None]:
    folder = services_folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "up.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(
            f"{root}: another `plumbline up` or `plumbline down` is under way in this workspace. Wait for it to end."
        ) from None
    try:
        yield
    finally:
        lock.release()


def _refuse_full_disk(root: Path) -> None:
    free = shutil.disk_usage(root).free
    if free < MIN_FREE_BYTES:
        raise OperationsError(
            f"{root}: expected at least {MIN_FREE_BYTES >> 20} MB of free disk for databases and logs, found "
            f"{free >> 20} MB. Free disk space, then run `plumbline up` again; nothing was started."
        )


def _refuse_other_server(plan: Plan) -> None:
    if not plan.params.prefect:
        require_server(plan.prefect_api_url)
        return
    given = os.environ.get("PREFECT_API_URL", "").rstrip("/").replace("//localhost", "//127.0.0.1")
    if given and given != plan.prefect_api_url:
        raise UsageError(
            f"PREFECT_API_URL: it names a server at {mask(given)}, which every command would use, while "
            f"services.prefect asks for one at {plan.prefect_api_url}. Unset PREFECT_API_URL, or set "
            f"services.prefect to false for a worker of that server."
        )


def _supervise(plan: Plan) -> list[str]:
    """A supervisor with this plan, whatever was there before."""
    supervisor = Supervisor(plan.folder)
    identity = supervisor.identity()
    if identity == plan.identity:
        write_configuration(plan)
        changed = supervisor.reload(plan.params.stop_timeout_s)
        return [f"{name}: changed, started again" for name in changed] + _end_outliving(plan, supervisor)
    if identity is not None:
        supervisor.stop("worker", plan.params.stop_timeout_s)
        supervisor.shut_down(len(supervisor.states()) * (plan.params.stop_timeout_s + 2))
    left = end_all(plan.folder, plan.params.stop_timeout_s)
    write_configuration(plan)
    supervisor.start()
    return [f"ended {len(left)} processes that an earlier supervisor left behind"] if left else []


def _end_outliving(plan: Plan, supervisor: Supervisor) -> list[str]:
    """End what services that do not run have left: it might answer in place of the one that is started next."""
    running = {name for name, state in supervisor.states().items() if state.pid is not None}
    left = [process for process in marked(plan.folder) if service_of(process) not in {None, *running}]
    end(left, plan.params.stop_timeout_s)
    return [f"ended {len(left)} processes that outlived their service"] if left else []


def _launch(plan: Plan, services: Sequence[Service]) -> None:
    supervisor = Supervisor(plan.folder)
    for service in services:
        supervisor.launch(service.name)
    waiting, until = list(services), time.monotonic() + plan.params.start_timeout_s
    while waiting:
        states = supervisor.states()
        waiting = [service for service in waiting if not _healthy(plan, service, states[service.name], until)]
        if waiting:
            time.sleep(_POLL_S)


def _healthy(plan: Plan, service: Service, state: ProcessState, until: float) -> bool:
    """True if it runs and answers; a worker by a heartbeat of its own, as far as the server's clock is ours."""
    since = state.started if plan.params.prefect else 0.0
    runs = state.state in _ALIVE
    health = check(plan, service, since) if runs else Health(False, state.note or "does not run")
    if not health.ok and (state.state == "FATAL" or time.monotonic() > until):
        log = log_path(plan, service.name)
        raise OperationsError(
            f"service {service.name}: expected it healthy within {plan.params.start_timeout_s:.0f} s, found it "
            f"{state.state.lower()}: {health.note.strip()}. The last lines of {log}:\n{_tail(log)}\nWhat else was "
            f"started keeps running: mend the cause and run `plumbline up` again, or `plumbline down`. "
            f"The supervisor's own log: {plan.folder / SUPERVISOR_LOG}"
        )
    return health.ok


def _tail(log: Path) -> str:
    if not log.exists():
        return "  (it wrote nothing)"
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 8192))
        lines = file.read().decode(errors="replace").splitlines()
    return "\n".join(f"  {mask(line)}" for line in lines[-_TAIL_LINES:] if line.strip())
