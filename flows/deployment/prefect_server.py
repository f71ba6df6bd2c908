"""Prefect's server behind checks of Host and Origin: what `prefect server start` runs, started as a module.

Prefect asks for the credentials itself (`PREFECT_SERVER_API_AUTH_STRING`), also on its WebSockets; its pages are static
and ask a person for them. Only `/api/health` and `/api/ready` answer without.
"""

from __future__ import annotations

import os

import uvicorn
from prefect.server.api.server import create_app
from prefect.settings import get_current_settings
from starlette.types import ASGIApp

from plumbline.data_contracts.errors import OperationsError
from plumbline.flows.deployment.sqlite_writes import wait_for_turns
from plumbline.tasks.access.requests import Proving, checked
from plumbline.tasks.access.serving_arguments import server_arguments
from plumbline.tasks.operations.services.plan import HOST

CREDENTIALS = "PREFECT_SERVER_API_AUTH_STRING"


def temporary_app() -> ASGIApp:
    """A command's temporary server (`tasks.operations.services.temporary`): the same checks on loopback."""
    wait_for_turns()
    return checked(create_app(), host=HOST)


def main(argv: list[str] | None = None) -> None:
    """Serve until a signal ends it."""
    given = server_arguments((__doc__ or "").splitlines()[0], argv)
    secret = os.environ.get(CREDENTIALS)
    if not secret:
        raise OperationsError(
            f"{CREDENTIALS}: expected credentials in the environment, found none. Use `plumbline up`."
        )
    # The pages may be opened under either name, and ask the API under the first.
    own = [f"http://{name}:{given.port}" for name in (given.host, "localhost")]
    os.environ["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] = ",".join([*own, *given.allowed_origin])
    wait_for_turns()
    settings = get_current_settings()
    app = checked(
        Proving(create_app(final=True, webserver_only=given.no_services), secret, given.port),
        host=given.host,
        allowed_hosts=given.allowed_host,
        allowed_origins=[*own, *given.allowed_origin],
    )
    uvicorn.run(
        app,
        host=given.host,
        port=given.port,
        timeout_keep_alive=settings.server.api.keepalive_timeout,
        ws_ping_interval=settings.server.api.websocket_ping_interval,
        ws_ping_timeout=settings.server.api.websocket_ping_timeout,
        log_level=settings.server.logging_level.lower(),
        server_header=False,
    )


if __name__ == "__main__":
    main()
