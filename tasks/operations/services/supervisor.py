"""The supervisor of a workspace's services: started, asked and ended over its socket (supervisord's XML-RPC)."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from plumbline.data_contracts.errors import OperationsError
from plumbline.data_contracts.permissions import explain_denied
from plumbline.data_contracts.secrets import mask
from plumbline.tasks.operations.services.configuration import CONFIGURATION, socket_path
from plumbline.tasks.operations.services.processes import MARK, SERVICE_MARK, end

_ANSWER_S = 15.0
_START_S = 60.0
_NOT_RUNNING = (10, 70)  # supervisor.xmlrpc.Faults: BAD_NAME, NOT_RUNNING
_ALREADY_STARTED = 60
_STOPPED = ("STOPPED", "EXITED", "FATAL")
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class ProcessState:
    """The supervisor's state of one service. `started` is a time stamp in seconds; 0 if it never ran."""

    state: str
    pid: int | None
    started: float
    note: str


class Supervisor:
    """The supervisor behind one services' folder. Every method raises `OperationsError` when it does not answer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rpc = xmlrpc.client.ServerProxy("http://supervisor", transport=_UnixTransport(socket_path(folder)))

    def identity(self) -> str | None:
        """The identity it was started with (`Plan.identity`); nothing if none runs.

        Raises `OperationsError` if this user may not ask it: then nobody knows whether it runs.
        """
        try:
            return str(self._rpc.supervisor.getIdentification())
        except PermissionError as error:
            refused = PermissionError(error.errno, error.strerror, str(socket_path(self.folder)))
            raise OperationsError(explain_denied(refused)) from error
        except (OSError, xmlrpc.client.Error, http.client.HTTPException):
            return None

    def start(self) -> None:
        """Start a supervisor in the background, in a session of its own, and wait until it answers."""
        command = [sys.executable, "-P", "-m", "supervisor.supervisord", "-c", CONFIGURATION]
        environment = {**os.environ, MARK: str(self.folder)}
        environment.pop(SERVICE_MARK, None)  # there where a flow run of a worker started this
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=_START_S, check=False
        )
        until = time.monotonic() + _START_S
        while done.returncode == 0 and time.monotonic() < until:
            if self.identity() is not None:
                return
            time.sleep(_POLL_S)
        said = mask((done.stderr or done.stdout).strip())[-500:]
        raise OperationsError(
            f"{self.folder / CONFIGURATION}: the supervisor did not start (exit code {done.returncode}): {said} Its "
            f"log is supervisord.log beside that file."
        )

    def states(self) -> dict[str, ProcessState]:
        """The state of every service that it knows."""
        found: Any = self._call(lambda rpc: rpc.getAllProcessInfo())
        return {item["name"]: _state(item) for item in found}

    def reload(self, grace_s: float) -> list[str]:
        """Take over the configuration on disk: stop what changed or went, learn what is new. Returns what changed."""
        answer: Any = self._call(lambda rpc: rpc.reloadConfig())
        added, changed, removed = answer[0]
        for name in (*changed, *removed):
            self.stop(name, grace_s)
            self._group("remove", name)
        for name in (*changed, *added):
            self._group("add", name)
        return [*added, *changed, *removed]

    def launch(self, name: str) -> None:
        """Start one service unless it runs; its health is another question."""
        try:
            self._call(lambda rpc: rpc.startProcess(name, False))
        except xmlrpc.client.Fault as fault:
            if fault.faultCode != _ALREADY_STARTED:
                raise OperationsError(f"service {name}: cannot be started: {fault.faultString}") from fault

    def stop(self, name: str, grace_s: float) -> None:
        """Stop one service and its process group; what a worker runs (flow runs) gets SIGTERM and `grace_s` before."""
        state = self.states().get(name)
        if state is None or state.pid is None:
            return
        if name == "worker":
            end_children(state.pid, grace_s)
        try:
            self._call(lambda rpc: rpc.stopProcess(name, False))
        except xmlrpc.client.Fault as fault:
            if fault.faultCode not in _NOT_RUNNING:
                raise OperationsError(f"service {name}: cannot be stopped: {fault.faultString}") from fault
        until = time.monotonic() + grace_s + _ANSWER_S
        while self.states()[name].state not in _STOPPED:
            if time.monotonic() > until:
                raise OperationsError(f"service {name}: still runs {grace_s + _ANSWER_S:.0f} s after it was stopped.")
            time.sleep(_POLL_S)

    def shut_down(self, wait_s: float) -> None:
        """Stop every service, the last started first, and then the supervisor itself."""
        pid: Any = self._call(lambda rpc: rpc.getPID())
        process = psutil.Process(pid)
        self._call(lambda rpc: rpc.shutdown())
        psutil.wait_procs([process], wait_s)

    def _group(self, verb: str, name: str) -> None:
        self._call(lambda rpc: getattr(rpc, f"{verb}ProcessGroup")(name))

    def _call(self, request: Callable[[Any], Any]) -> Any:
        try:
            return request(self._rpc.supervisor)
        except (OSError, http.client.HTTPException, xmlrpc.client.ProtocolError) as error:
            raise OperationsError(
                f"{self.folder}: expected the supervisor of the services to answer, found {type(error).__name__}: "
                f"{error}. Run `plumbline up` again: it ends what is left and starts anew."
            ) from error


def end_children(pid: int, grace_s: float) -> None:
    """SIGTERM to what a process has started, once, and time to end; what is left then is killed."""
    try:
        children = psutil.Process(pid).children()
    except psutil.NoSuchProcess:
        return
    end(children, grace_s)


def _state(info: Mapping[str, Any]) -> ProcessState:
    return ProcessState(info["statename"], info["pid"] or None, float(info["start"]), info["spawnerr"])


class _UnixTransport(xmlrpc.client.Transport):
    """XML-RPC over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        connection = _UnixConnection(self._path)
        self._connection = host, connection
        return connection

    def single_request(self, *arguments: Any, **options: Any) -> Any:
        """One call on a connection of its own: a supervisor that was started again has another socket."""
        try:
            return super().single_request(*arguments, **options)
        finally:
            self.close()


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("supervisor", timeout=_ANSWER_S)
        self._path = path

    def connect(self) -> None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(_ANSWER_S)
        try:
            connection.connect(str(self._path))
        except OSError:
            connection.close()
            raise
        self.sock = connection
