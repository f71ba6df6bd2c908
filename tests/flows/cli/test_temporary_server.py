"""A run whose temporary server is killed ends soon: no call waits for a server that never comes back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

_PROGRAM = """
import sys, time
from pathlib import Path
import psutil
from plumbline.flows.cli.temporary_server import naming_its_end, temporary_server
from plumbline.data_contracts.errors import OperationsError
with temporary_server(Path(sys.argv[1])):
    from prefect.client.orchestration import get_client
from prefect.events import emit_event
from prefect.events.worker import EventsWorker
emit_event("one", {"prefect.resource.id": "it"})
assert EventsWorker.instance()._client._reconnection_attempts == 2, "events wait for it as well, at the exit"
with get_client(sync_client=True) as client:
    assert client.read_flows() == []
    for server in psutil.Process().children():
        server.kill()
    killed = time.monotonic()
    try:
        with naming_its_end():
            client.read_flows()
    except OperationsError as error:
        print(time.monotonic() - killed, error)
"""


@pytest.mark.long
def test_no_call_waits_for_a_server_that_was_killed(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    command = [sys.executable, "-c", _PROGRAM, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    seconds, _, told = done.stdout.partition(" ")
    assert float(seconds) < 30  # a minute by Prefect's own count of tries
    assert told.startswith("temporary Prefect server: it ended with code -9")
    assert "prefect.log" in told
