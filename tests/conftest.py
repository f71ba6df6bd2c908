from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from hypothesis import settings

from plumbline.flows.graph import environment
from tests.support.once import give_key

pytest_plugins = ["tests.support.parts"]
gc.disable()  # until all tests are collected
settings.register_profile("suite", deadline=None)  # a first call imports, and a machine may be busy
settings.load_profile("suite")
environment.prepare(threads=1)
os.environ["HF_HUB_OFFLINE"] = "1"
_CONFIG = tempfile.TemporaryDirectory(prefix="plumbline-config-")  # the signing key of the tests, not the person's own
os.environ["XDG_CONFIG_HOME"] = _CONFIG.name
give_key(Path(_CONFIG.name))
os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell's background job ignores Ctrl-C, and so would every command that a test interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data and a real small model, beside the repository on some machines only."""
    if not SHARED.is_dir():
        pytest.skip("../shared (real data and model) is not on this machine")
    return SHARED


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One real, temporary Prefect server for the session."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real Prefect server for the session, with a home of its own; the harness's runs no scheduler."""
    with _serve(tmp_path_factory.mktemp("prefect"), _free_port()) as url:
        yield url


@pytest.fixture
def restartable(tmp_path: Path) -> Callable[[], AbstractContextManager[str]]:
    """Start a real server of the test's own; each start has the same address and the same home."""
    home, port = tmp_path / "prefect-home", _free_port()
    home.mkdir()
    return lambda: _serve(home, port)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def _serve(home: Path, port: int) -> Iterator[str]:
    url = f"http://127.0.0.1:{port}/api"
    environment = {**os.environ, "PREFECT_HOME": str(home), "PREFECT_API_URL": url, "PREFECT_UI_API_URL": url}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (home / "server.log").open("ab") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        _until_healthy(url, process, home / "server.log")
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def _until_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.3)
    pytest.fail(f"the Prefect server did not come up:\n{log.read_text()[-2000:]}")
