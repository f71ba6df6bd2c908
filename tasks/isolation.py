"""Run a stage in a process group of its own, so that a timeout, a cancel or a crash really ends it.

1. Training stages are forked from a server process that has torch and trl loaded (importing
   them takes about eight seconds a process); the others start from a bare interpreter.
2. The child leads its own process group, sends its output to a log file, and watches its
   parent: when the parent dies, however it dies, the group ends too. No orphan keeps training.
3. The parent relays progress and re-raises the child's error.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from data_contracts.artifact import Artifact
from data_contracts.errors import PlumblineError, StageError
from data_contracts.params import Section
from data_contracts.progress import Progress, silent
from tasks.stage import Stage, execute

_FORK = multiprocessing.get_context("forkserver")
_SPAWN = multiprocessing.get_context("spawn")
PRELOAD = ["tasks.models.preload"]
_POLL_S = 0.2
_GRACE_S = 5.0
_REPORT_EVERY_S = 0.2


def warm_up() -> None:
    """Start loading torch and trl in the fork server, before the first training stage needs them."""
    from multiprocessing import forkserver

    _FORK.set_forkserver_preload(PRELOAD)
    forkserver.ensure_running()


def run_isolated(
    stage: Stage,
    root: Path,
    params: Section,
    log: Path,
    progress: Progress = silent,
    cancelled: threading.Event | None = None,
) -> Artifact:
    """Run `execute(stage, …)` in its own process group and return its artifact.

    Raises the child's own `PlumblineError`, or `StageError` naming the log when it ended otherwise,
    ran past `stage.timeout_s`, or `cancelled` was set. The group is killed on every way out.
    """
    context = _FORK if stage.trains else _SPAWN
    receiver, sender = context.Pipe(duplex=False)
    log.parent.mkdir(parents=True, exist_ok=True)
    process = context.Process(target=_child, args=(sender, stage, root, params, log), name=f"plumbline-{stage.name}")
    process.start()
    sender.close()
    try:
        return _follow(process, receiver, stage, log, progress, cancelled or threading.Event())
    finally:
        _end_group(process)
        receiver.close()


def _follow(
    process: BaseProcess,
    receiver: Connection,
    stage: Stage,
    log: Path,
    progress: Progress,
    cancelled: threading.Event,
) -> Artifact:
    deadline = None if stage.timeout_s is None else time.monotonic() + stage.timeout_s
    while True:
        if deadline is not None and time.monotonic() > deadline:
            raise StageError(f"stage {stage.name}: still running after {stage.timeout_s:.0f} s, ended. Log: {log}")
        if cancelled.is_set():
            raise StageError(f"stage {stage.name}: ended because another stage of the run failed.")
        if not receiver.poll(_POLL_S):
            continue
        try:
            kind, value = receiver.recv()
        except EOFError:
            process.join(_GRACE_S)
            raise StageError(
                f"stage {stage.name}: its process ended with exit code {process.exitcode} "
                f"(-9 is a kill, often for lack of memory). Log: {log}. Run again: finished work is reused."
            ) from None
        if kind == "progress":
            progress(*value)
        elif kind == "done":
            artifact: Artifact = value
            return artifact
        else:
            raise value


def _child(sender: Connection, stage: Stage, root: Path, params: Section, log: Path) -> None:
    os.setsid()
    _divert_output(log)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        sender.send(("done", execute(stage, root, params, _Reporter(sender))))
    except PlumblineError as error:
        traceback.print_exc()
        sender.send(("error", error))
    except Exception as error:
        traceback.print_exc()
        note = f"stage {stage.name}: {type(error).__name__}: {error}. The full traceback is in {log}."
        sender.send(("error", StageError(note)))
    finally:
        sender.close()


class _Reporter:
    """Sends progress to the parent, a few times a second at most."""

    def __init__(self, sender: Connection) -> None:
        self._sender = sender
        self._last = 0.0

    def __call__(self, done: int, total: int, note: str) -> None:
        now = time.monotonic()
        if now - self._last >= _REPORT_EVERY_S or done >= total:
            self._last = now
            self._sender.send(("progress", (done, total, note)))


def _divert_output(log: Path) -> None:
    """Send stdout and stderr of this process to the log file."""
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    faulthandler.enable()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.killpg(os.getpgid(0), signal.SIGKILL)


def _end_group(process: BaseProcess) -> None:
    """End what is left of the child's process group: politely, then for good."""
    if process.pid is None:
        return
    if process.is_alive():
        process.join(_POLL_S)
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            if os.getpgid(process.pid) == process.pid:
                os.killpg(process.pid, sign)
        except ProcessLookupError:
            break
        process.join(_GRACE_S)
        if not process.is_alive():
            break
    process.join(_GRACE_S)
