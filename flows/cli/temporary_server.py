"""The Prefect server of a command that is given none.

Prefect would start one by itself; that one outlives a command that is killed, lets every user of the machine in, and
ends at a Ctrl-C before the command has reported to it how the run ended.
"""

from __future__ import annotations

import atexit
import logging
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plumbline.data_contracts.errors import OperationsError, PlumblineError
from plumbline.tasks.operations.services import temporary

_START_S = "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"
_AUTH = "PREFECT_API_AUTH_STRING"
_URL = "PREFECT_API_URL"
_RETRIES = "PREFECT_CLIENT_MAX_RETRIES"
_LOOK_EVERY_S = 0.5
_QUICK_TRIES = 2  # Prefect pauses before every further one
_started: list[temporary.TemporaryServer] = []


@contextmanager
def temporary_server(root: Path) -> Iterator[None]:
    """Inside, where no server is configured, start one; leaving the block waits until it answers.

    Put the imports that the run needs into the block: they take as long as the server's start.
    """
    from prefect.settings import get_current_settings

    _forget_ended()
    settings = get_current_settings()
    if settings.api.url is not None:
        yield
        return
    given = settings.to_environment_variables(exclude_unset=True)
    given.pop("PREFECT_PROFILE", None)  # its settings are in `given`; the server's own home has no such profile
    state = root / ".plumbline"
    server = temporary.start(state / "prefect", state / "logs" / "prefect.log", given)
    atexit.register(
        server.stop
    )  # before Prefect's own exit handlers are made: theirs run first and send the last events
    yield
    server.await_ready(float(os.environ.get(_START_S, "180")))
    _use(server)


@contextmanager
def naming_its_end() -> Iterator[None]:
    """Around the run: say that its server was lost in place of what a call to it came to. Raises `OperationsError`."""
    try:
        yield
    except PlumblineError:
        raise
    except Exception as error:
        for server in _started:
            code = server.process.poll()
            if code is not None:
                raise OperationsError(
                    f"temporary Prefect server: it ended with code {code} while the run needed it (-9 is a kill, often "
                    f"for lack of memory); its log is {server.log}. Run again: finished work is reused."
                ) from error
        raise


def _forget_ended() -> None:
    """Let a further run in this process not look for a server that was killed since the run before."""
    from prefect.context import refresh_global_settings_context

    for server in [one for one in _started if one.process.poll() is not None]:
        _started.remove(server)
        if os.environ.get(_URL) == server.api_url:
            for name in (_URL, _AUTH, _RETRIES, temporary.TEMPORARY):
                os.environ.pop(name, None)
            refresh_global_settings_context()


def _use(server: temporary.TemporaryServer) -> None:
    from prefect.context import refresh_global_settings_context

    os.environ.update({_URL: server.api_url, _AUTH: server.credentials, temporary.TEMPORARY: server.api_url})
    refresh_global_settings_context()
    _started.append(server)
    _send_events_at_once()
    threading.Thread(target=_end_waits_with, args=(server.process,), name="temporary-server", daemon=True).start()


def _send_events_at_once() -> None:
    """Let an event be lost that the server does not take: Prefect tries each for seven seconds, at the exit too."""
    from prefect.events.clients import PrefectEventsClient
    from prefect.events.worker import EventsWorker

    EventsWorker.set_client_override(PrefectEventsClient, reconnection_attempts=_QUICK_TRIES)
    logging.getLogger(EventsWorker.__name__).setLevel(logging.CRITICAL)


def _end_waits_with(process: subprocess.Popen[bytes]) -> None:
    """Once the server has ended, let no call be tried again: Prefect would wait a minute for it, at every call."""
    from prefect.context import refresh_global_settings_context

    while process.poll() is None:
        time.sleep(_LOOK_EVERY_S)
    os.environ[_RETRIES] = "0"
    refresh_global_settings_context()
