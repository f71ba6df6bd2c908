"""`plumbline retrain` without a Prefect server, ended amid its work: one line, and nothing of it lives on."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from pathlib import Path

import psutil
import pytest

from plumbline.flows.graph.workspaces import init_workspace
from plumbline.tasks.params.document import save_params
from plumbline.tasks.params.layers import load_params
from tests.flows.conftest import BIN, TINY, until

MARK = "PLUMBLINE_TEST_INTERRUPTS"
pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("interrupted") / "workspace"
    init_workspace(root, recipe="sample_world")
    save_params(root, load_params(root, [TINY])[1])
    return root


def marked(mark: str) -> list[psutil.Process]:
    """Every live process with this mark in its environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_takes_its_temporary_server_and_its_stages_with_it(workspace: Path, number: signal.Signals) -> None:
    mark, settings = str(uuid.uuid4()), f"seed={number + 100}"
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    log = workspace / ".plumbline/logs/sample_world.log"
    log.unlink(missing_ok=True)
    with subprocess.Popen(
        [BIN / "plumbline", "retrain", "--json", "--set", settings],
        cwd=workspace,
        env={**environment, MARK: mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        until(lambda: log.exists() or process.poll() is not None)
        family = {item.name() for item in marked(mark)}
        sent = time.monotonic()
        if number == signal.SIGKILL:
            process.kill()
        else:
            os.killpg(process.pid, number)  # as a terminal does
        out, err = process.communicate(timeout=60)
        assert time.monotonic() - sent < 10
    assert family, "it had ended before"
    until(lambda: not marked(mark), 10)
    if number == signal.SIGINT:
        assert process.returncode == 3
        assert err.decode().splitlines()[-1].startswith("plumbline: interrupted (SIGINT)")
        assert "Traceback" not in err.decode()
        assert out.decode().count('"error"') == 1
