"""A workspace with all its services up, in a folder that everybody may enter; a stranger; a browser."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from plumbline.flows.cli import services as commands
from plumbline.flows.cli.services import planned
from plumbline.tasks.operations.intake.tokens import create_token, token_file
from plumbline.tasks.operations.services import operate
from plumbline.tasks.operations.services.credentials import find_credentials
from plumbline.tasks.operations.services.plan import Plan
from plumbline.tasks.operations.services.processes import marked
from plumbline.tasks.params.document import save_params
from plumbline.tasks.params.layers import load_params
from tests.flows.conftest import Workspace

STRANGER = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@dataclass(frozen=True)
class Up:
    """A workspace whose services run."""

    root: Path
    plan: Plan
    token: str

    @property
    def credentials(self) -> dict[str, str]:
        return dict(find_credentials(self.plan.folder))

    def url(self, name: str) -> str:
        (service,) = [item for item in self.plan.services if item.name == name]
        return f"http://127.0.0.1:{service.port}"


def free_ports(count: int) -> list[int]:
    """Ports that nobody holds."""
    sockets = [socket.socket() for _ in range(count)]
    for probe in sockets:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in sockets]
    for probe in sockets:
        probe.close()
    return ports


@pytest.fixture(scope="module")
def up() -> Iterator[Up]:
    """Everything that `plumbline up` can start, once a module."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name, pytest.MonkeyPatch.context() as patch:
        for variable in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING", "PREFECT_API_KEY"):
            patch.setenv(variable, "")
        Path(name).chmod(0o755)
        root = Path(name) / "workspace"
        root.mkdir()
        assert Workspace(root, "").run("init", ".").code == 0
        prefect, mlflow, intake = free_ports(3)
        settings = [f"services.prefect_port={prefect}", f"services.mlflow_port={mlflow}", f"intake.port={intake}"]
        quiet = ["schedule.poll_cron='0 0 1 1 *'", "schedule.monitor_cron='0 0 1 1 *'", "services.start_timeout_s=300"]
        save_params(root, load_params(root, settings=[*settings, *quiet, "services.intake=true"])[1])
        token = create_token(token_file(root), "crowd")
        plan = planned(root, load_params(root)[0])
        try:
            commands.up(workspace=root)
            patch.setenv("PREFECT_API_URL", "")
            patch.setenv("PREFECT_API_AUTH_STRING", "")
            yield Up(root, plan, token)
        finally:
            operate.bring_down(root, 20)
            assert marked(plan.folder) == []


@pytest.fixture
def stranger() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a program as another user of this machine; skips where that cannot be done."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv, to become another user")

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        clean = {"PATH": os.environ["PATH"]}
        return subprocess.run([*STRANGER, *command], env=clean, cwd="/", capture_output=True, text=True, check=False)

    return run


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real Chromium, in which every *.example is 127.0.0.1."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    rules = "--host-resolver-rules=MAP *.example 127.0.0.1"
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=[*_FLAGS, "--no-first-run", rules])
        yield opened
        opened.close()
