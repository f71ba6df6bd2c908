"""The Prefect server of a command that is given none.

Prefect would start one by itself; that one outlives a command that is killed, lets every user of the machine in, and
ends at a Ctrl-C before the command has told it how the run ended.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.services import temporary

_START_S = "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"
_AUTH = "PREFECT_API_AUTH_STRING"
_URL = "PREFECT_API_URL"


@contextmanager
def temporary_server(root: Path) -> Iterator[None]:
    """Inside, where no server is configured, start one; leaving the block waits until it answers.

    Put the imports that the run needs into the block: they take as long as the server's start.
    """
    from prefect.settings import get_current_settings

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


def _use(server: temporary.TemporaryServer) -> None:
    from prefect.context import refresh_global_settings_context

    os.environ.update({_URL: server.api_url, _AUTH: server.credentials, temporary.TEMPORARY: server.api_url})
    refresh_global_settings_context()
