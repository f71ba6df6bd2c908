"""A Prefect server for one command that has none: known to this command alone, and ended with it.

1. `start` binds a free port on loopback and hands it over, with credentials that no other process receives.
2. The server leads a session of its own: a Ctrl-C in the terminal reaches the command, which still needs the server.
3. The server watches a pipe that only its starter holds open. However the starter ends, the pipe ends too, and the
   server kills its process group. SIGKILL, a crash and `os._exit` leave nothing behind, on every platform.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from plumbline.data_contracts.errors import OperationsError
from plumbline.data_contracts.secrets import mask
from plumbline.tasks.operations.services.plan import HOST

TEMPORARY = "PLUMBLINE_TEMPORARY_SERVER"
"""The variable that holds the URL of this process's temporary server; events sent there are lost with it."""

_STOP_S = 3.0
_POLL_S = 0.1
_ANSWER_S = 5.0
_TAIL_BYTES = 2000


@dataclass(frozen=True, slots=True)
class TemporaryServer:
    """A server that was started; `await_ready` before it is used."""

    process: subprocess.Popen[bytes]
    api_url: str
    credentials: str
    log: Path

    def await_ready(self, within_s: float) -> None:
        """Return when it answers. Raises `OperationsError` with the end of its log where it does not."""
        until = time.monotonic() + within_s
        while not _answers(self.api_url):
            code = self.process.poll()
            if code is not None or time.monotonic() > until:
                self.stop()
                found = f"it answered nothing within {within_s:.0f} s" if code is None else f"it ended with code {code}"
                raise OperationsError(
                    f"temporary Prefect server: expected it to answer, but {found}. The end of {self.log}:\n"
                    f"{_tail(self.log)}\nRun again, or start a server with `plumbline up`."
                )
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """End it: politely, then for good."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()


def start(home: Path, log: Path, environment: Mapping[str, str]) -> TemporaryServer:
    """Start a server with its database in `home`; `environment` wins over that of this process."""
    home.mkdir(parents=True, exist_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    credentials = f"plumbline:{secrets.token_urlsafe(32)}"
    with socket.create_server((HOST, 0), backlog=128) as listening, log.open("ab") as output:
        descriptor, port = listening.fileno(), listening.getsockname()[1]
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, str(descriptor)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            pass_fds=(descriptor,),
            start_new_session=True,
            env={
                **os.environ,
                "PREFECT_HOME": str(home),
                **environment,
                "PREFECT_SERVER_API_AUTH_STRING": credentials,
                "PREFECT_API_AUTH_STRING": credentials,
                "PREFECT_UI_ENABLED": "0",
                # As Prefect marks the temporary server that it would start: no scheduler, no other services of a host.
                "PREFECT__SERVER_EPHEMERAL": "1",
                "PREFECT__SERVER_FINAL": "1",
            },
        )
    return TemporaryServer(process, f"http://{HOST}:{port}/api", credentials, log)


def _answers(api_url: str) -> bool:
    import httpx

    try:
        with httpx.Client(timeout=_ANSWER_S, trust_env=False) as client:
            return client.get(f"{api_url}/health").status_code == 200
    except httpx.HTTPError:
        return False


def _tail(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        return mask(file.read().decode(errors="replace").strip()) or "(it wrote nothing)"


def _end_with_starter() -> None:
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)


def main(descriptor: int) -> None:
    """Serve on a socket that is listening already, until a signal, or the starter's end."""
    threading.Thread(target=_end_with_starter, daemon=True).start()
    import uvicorn

    uvicorn.run(
        "plumbline.flows.deployment.prefect_server:temporary_app",
        factory=True,
        fd=descriptor,
        log_level="error",
        lifespan="on",
        timeout_graceful_shutdown=1,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
