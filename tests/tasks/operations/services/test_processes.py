"""Ending what services started: by their mark, politely first, and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from plumbline.tasks.operations.services.processes import MARK, end_all, marked
from plumbline.tasks.operations.services.supervisor import end_children

pytestmark = pytest.mark.slow

POLITE = "import signal,sys,time; signal.signal(15, lambda *_: (open({0!r},'w').write('ended'), sys.exit(0)));"
READY = "print('up', flush=True); time.sleep(600)"
DEAF = "import signal,time; signal.signal(15, signal.SIG_IGN);"


def _start(code: str, folder: Path | None = None) -> subprocess.Popen[bytes]:
    environment = {**os.environ, **({} if folder is None else {MARK: str(folder)})}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    return process


def _end(*processes: subprocess.Popen[bytes]) -> list[int]:
    for process in processes:
        process.kill()
    return [process.wait(30) for process in processes]


def test_the_marked_are_ended_wherever_they_are_and_others_spared(tmp_path: Path) -> None:
    """One that leads a session of its own and lost its parent is found; one of another workspace is not."""
    inner = f"import time; {READY}"
    outer = (
        "import subprocess,sys; child = subprocess.Popen([sys.executable, '-c', "
        f"{inner!r}], stdout=subprocess.PIPE, start_new_session=True); child.stdout.readline(); "
        "print('up', flush=True); print(child.pid, flush=True)"
    )
    parent = _start(outer, tmp_path / "mine")
    assert parent.stdout is not None
    orphan = int(parent.stdout.readline())
    parent.wait(30)
    other = _start(f"import time; {READY}", tmp_path / "others")
    stopped = _start(f"import time; {READY}", tmp_path / "mine")
    os.kill(stopped.pid, signal.SIGSTOP)
    try:
        assert {process.pid for process in marked(tmp_path / "mine")} == {orphan, stopped.pid}
        assert set(end_all(tmp_path / "mine", 10)) == {orphan, stopped.pid}
        assert not psutil.pid_exists(stopped.pid)
        assert not psutil.pid_exists(orphan) or psutil.Process(orphan).status() == psutil.STATUS_ZOMBIE
        assert other.poll() is None
        assert end_all(tmp_path / "mine", 1) == []
    finally:
        _end(other, stopped)


def test_what_a_worker_runs_gets_sigterm_and_then_sigkill(tmp_path: Path) -> None:
    note = tmp_path / "note"
    lines = [POLITE.format(str(note)) + READY, DEAF + READY]
    code = (
        f"import subprocess,sys,time\nfor line in {lines!r}:\n"
        "    subprocess.Popen([sys.executable, '-c', line], stdout=subprocess.PIPE).stdout.readline()\n"
        "print('up', flush=True); time.sleep(600)"
    )
    worker = _start(code)
    children = psutil.Process(worker.pid).children()
    try:
        began = time.monotonic()
        end_children(worker.pid, 3)
        assert len(children) == 2
        assert note.read_text() == "ended"
        assert time.monotonic() - began >= 3  # the deaf one had its time
        assert all(child.status() == psutil.STATUS_ZOMBIE for child in children)
        assert worker.poll() is None
    finally:
        _end(worker)
