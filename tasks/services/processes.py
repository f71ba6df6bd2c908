"""Processes of a workspace's services, told apart by a mark in their environment, never by name.

The supervisor is started with the mark; what it starts inherits it, and so do flow runs and whatever they
start. So what a killed supervisor or worker left behind is found, wherever it was re-parented and however
often its pid was used by others before; nothing that we did not start carries the mark.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import psutil

MARK = "PLUMBLINE_SERVICES"


def marked(folder: Path) -> list[psutil.Process]:
    """Every live process that the supervisor of this services' folder started, and itself; never the caller."""
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    return [process for process in psutil.process_iter() if process.pid not in own and _has_mark(process, folder)]


def _has_mark(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == str(folder)
    except (psutil.Error, OSError):  # gone, or another user's
        return False


def end(processes: Sequence[psutil.Process], grace_s: float) -> list[psutil.Process]:
    """SIGTERM, then SIGKILL to what still runs after the grace. Returns what was killed. A pid used anew is spared."""
    for process in processes:
        _signal(process, signal.SIGTERM)
        _signal(process, signal.SIGCONT)  # one that was stopped hears SIGTERM only then
    _, left = psutil.wait_procs(processes, grace_s)
    for process in left:
        _signal(process, signal.SIGKILL)
    psutil.wait_procs(left, 10)
    return list(left)


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
