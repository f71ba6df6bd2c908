"""Run a stage in a process group of its own, so that a timeout, a cancel or a crash really ends it.

1. Training stages are forked from a server process that has torch and trl loaded (importing
   them takes about eight seconds per process); the others start from a bare interpreter.
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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING

from plumbline.data_contracts.artifact import Artifact
from plumbline.data_contracts.errors import PlumblineError, StageError
from plumbline.data_contracts.progress import Progress, silent
from plumbline.tasks.params.section import Section
from plumbline.tasks.pipeline.stage import Stage, execute

if TYPE_CHECKING:
    import psutil

_FORK = multiprocessing.get_context("forkserver")
_SPAWN = multiprocessing.get_context("spawn")
PRELOAD = ["plumbline.tasks.models.preload"]
_STARTER = "PLUMBLINE_FORK_SERVER_STARTER"  # as in the module that is preloaded, whose import takes seconds
_POLL_S = 0.2
_GRACE_S = 5.0
_REPORT_EVERY_S = 0.2
_SHELLS = ("sh", "bash", "dash", "zsh", "ash", "ksh", "fish")


def warm_up() -> None:
    """Start loading torch and trl in the fork server, before the first training stage needs them."""
    from multiprocessing import forkserver

    os.environ[_STARTER] = str(os.getpid())
    _FORK.set_forkserver_preload(PRELOAD)
    with _without_interrupts():
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
    cancelled = cancelled or threading.Event()
    receiver, sender = context.Pipe(duplex=False)
    log.parent.mkdir(parents=True, exist_ok=True)
    process = context.Process(target=_child, args=(sender, stage, root, params, log), name=f"plumbline-{stage.name}")
    try:
        _start(process, stage, cancelled)
        sender.close()
        return _follow(process, receiver, stage, log, progress, cancelled)
    finally:
        _end_group(process)
        receiver.close()


def _start(process: BaseProcess, stage: Stage, cancelled: threading.Event) -> None:
    """Start the process, or give up once `cancelled` is set.

    A fork server answers when its imports are done: seconds, a minute on a busy machine, in which the call that starts
    a process notices nothing else. So it runs in a thread, which ends what comes up after all.
    """
    failed: list[Exception] = []
    settled = threading.Lock()
    started = threading.Event()
    unwanted = threading.Event()

    def start() -> None:
        try:
            with _without_interrupts():
                process.start()
        except Exception as error:
            failed.append(error)
        with settled:
            started.set()
            late = unwanted.is_set()
        if late:
            _end_group(process)

    threading.Thread(target=start, name=f"start-{stage.name}", daemon=True).start()
    while not started.wait(_POLL_S):
        with settled:
            if cancelled.is_set() and not started.is_set():
                unwanted.set()
                raise _ended_by_another(stage)
    if failed:
        raise failed[0]


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
            raise _ended_by_another(stage)
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
            if str(log) not in str(value):
                value.add_note(f"Log: {log}")
            raise value


def _ended_by_another(stage: Stage) -> StageError:
    return StageError(f"stage {stage.name}: ended because another stage of the run failed, or the run was ended.")


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Keep Ctrl-C from processes that start inside: it is for this process, which ends them in order."""
    resource_tracker.ensure_running()  # to start it inside would let the signal through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _hear_interrupts() -> None:
    """Undo `_without_interrupts` in the child, once it leads a session of its own; what was sent before is dropped."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGINT, handler)


def _child(sender: Connection, stage: Stage, root: Path, params: Section, log: Path) -> None:
    os.setsid()
    _hear_interrupts()
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
    """Sends progress to the parent, a few times per second at most."""

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


def end_with_driver() -> None:
    """End this process when the program that has it run one stage (`dvc repro`) ends, however it does.

    DVC starts the command through a shell, which may stay between the two.
    """
    import psutil

    own = psutil.Process()
    above = own.parents()
    driver = next((place for place, process in enumerate(above) if process.name() not in _SHELLS), None)
    if driver is not None:
        links = list(zip([own, *above[:driver]], above[: driver + 1], strict=True))
        threading.Thread(target=_end_without, args=(links,), daemon=True).start()


def _end_without(links: Sequence[tuple[psutil.Process, psutil.Process]]) -> None:
    """End this process once a process of the chain has another parent: its own has ended, reaped or not."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        while all(child.ppid() == parent.pid for child, parent in links):
            time.sleep(_POLL_S)
    os.kill(os.getpid(), signal.SIGKILL)


def _end_group(process: BaseProcess) -> None:
    """End the child and what is left of its process group: politely, then for good, well within ten seconds."""
    if process.pid is None:
        return
    if process.is_alive():
        process.join(_POLL_S)
    for sign in (signal.SIGTERM, signal.SIGKILL):
        if process.is_alive():
            _signal(process.pid, sign)
            process.join(_GRACE_S)
    with suppress(ProcessLookupError):  # the child is gone: what it had started may not be
        os.killpg(process.pid, signal.SIGKILL)


def _signal(pid: int, sign: signal.Signals) -> None:
    """To the group that the child leads; to the child alone as long as it leads none: its imports come first."""
    with suppress(ProcessLookupError):
        try:
            os.killpg(pid, sign)
        except ProcessLookupError:
            os.kill(pid, sign)
