"""Processes of a workspace's services, distinguished by a mark in their environment, never by name.

The supervisor is started with the mark; what it starts inherits it, and so do flow runs and whatever they
start. So what a killed supervisor or worker left behind is found, wherever it was re-parented and however
often its pid was used by others before; nothing that we did not start carries the mark. A second mark, inherited
too, names the service: MLflow's parent may be killed while the child that answers lives on and holds the port.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

MARK = "PLUMBLINE_SERVICES"
SERVICE_MARK = "PLUMBLINE_SERVICE"
_POLL_S = 0.1
_KILLED_S = 10.0  # until the kernel has ended what was killed


def marked(folder: Path) -> list[psutil.Process]:
    """Every live process that the supervisor of this services' folder started, and itself; never the caller."""
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    return [process for process in psutil.process_iter() if process.pid not in own and _has_mark(process, folder)]


def service_of(process: psutil.Process) -> str | None:
    """The service that a marked process belongs to; nothing for the supervisor, or where the process has ended."""
    return _environment(process).get(SERVICE_MARK)


def _has_mark(process: psutil.Process, folder: Path) -> bool:
    return _environment(process).get(MARK) == str(folder)


def _environment(process: psutil.Process) -> Mapping[str, str]:
    try:
        return {} if _has_ended(process) else process.environ()
    except (psutil.Error, OSError):  # gone, or another user's
        return {}


def _has_ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def end(processes: Sequence[psutil.Process], grace_s: float) -> list[psutil.Process]:
    """SIGTERM, then SIGKILL to what still runs after the grace. Returns what was killed. A pid used anew is spared."""
    for process in processes:
        _signal(process, signal.SIGTERM)
        _signal(process, signal.SIGCONT)  # one that was stopped receives SIGTERM only then
    left = _wait(processes, grace_s)
    for process in left:
        _signal(process, signal.SIGKILL)
    _wait(left, _KILLED_S)
    return left


def _wait(processes: Sequence[psutil.Process], within_s: float) -> list[psutil.Process]:
    """Those that still run after that time. One that ended has ended, also where its parent never asks how."""
    left, until = list(processes), time.monotonic() + within_s
    while left and time.monotonic() < until:
        _, there = psutil.wait_procs(left, _POLL_S)
        left = [process for process in there if not _has_ended(process)]
    return left


def end_all(folder: Path, grace_s: float) -> list[int]:
    """End every marked process, also what came up meanwhile. Returns the pids that were found."""
    found = marked(folder)
    end(found, grace_s)
    late = marked(folder)  # started by a supervisor that lived on without answering
    end(late, grace_s)
    return [process.pid for process in (*found, *late)]


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)  # psutil compares the start time first: a pid used anew is NoSuchProcess
    except psutil.NoSuchProcess:
        return
