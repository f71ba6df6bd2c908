"""The Prefect server of one command: a real one, in the hands of a program that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from plumbline.data_contracts.errors import OperationsError
from plumbline.tasks.operations.services import temporary

_STARTER = """
import sys, time
from pathlib import Path
from plumbline.tasks.operations.services import temporary
server = temporary.start(Path(sys.argv[1]), Path(sys.argv[1]) / "server.log", {})
server.await_ready(120)
print(server.process.pid, server.api_url, server.credentials, flush=True)
time.sleep(600)
"""


@dataclass(frozen=True)
class Started:
    """A program that started a server, and what it knows of it."""

    starter: subprocess.Popen[bytes]
    pid: int
    url: str
    credentials: str


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    home = tmp_path_factory.mktemp("home")
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    with subprocess.Popen(
        [sys.executable, "-c", _STARTER, str(home)], env=environment, stdout=subprocess.PIPE, start_new_session=True
    ) as starter:
        assert starter.stdout is not None
        pid, url, credentials = starter.stdout.readline().decode().split()
        yield Started(starter, int(pid), url, credentials)
        starter.kill()


def test_it_lets_nobody_in_but_its_starter(started: Started) -> None:
    with httpx.Client(base_url=started.url, trust_env=False) as client:
        assert client.post("/flows/filter", json={}).status_code == 401
        named = client.post("/flows/filter", json={}, auth=("plumbline", started.credentials.partition(":")[2]))
        assert named.json() == []
        assert client.get("/health", headers={"Host": "rebound.example"}).status_code == 400
        assert client.get("/health", headers={"Origin": "http://page.example"}).status_code == 403
    assert started.credentials not in " ".join(psutil.Process(started.pid).cmdline())


def test_ctrl_c_is_for_its_starter_and_sigkill_of_the_starter_ends_it(started: Started) -> None:
    assert os.getsid(started.pid) == started.pid != os.getsid(started.starter.pid)
    server = psutil.Process(started.pid)
    os.kill(started.starter.pid, signal.SIGKILL)
    until = time.monotonic() + 5
    while server.is_running() and server.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until, "it outlived its starter"
        time.sleep(0.05)


@pytest.mark.slow
def test_one_that_cannot_start_says_why_and_where_its_log_is(tmp_path: Path) -> None:
    broken = {"PREFECT_API_DATABASE_CONNECTION_URL": "sqlite+aiosqlite:////proc/none/prefect.db"}
    server = temporary.start(tmp_path / "home", tmp_path / "server.log", broken)
    with pytest.raises(OperationsError, match=r"(?s)ended with code \d.*server\.log.*unable to open"):
        server.await_ready(120)
    assert server.process.poll() is not None
