"""The Prefect server that a command talks to: whose it is, found, answering, and of the version this was tested with.

It is this workspace's own server, which proves that before it is sent a credential, or one that the user named. What
else answers on the port is refused. A credential of ours goes to our own server alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.version import Version

from plumbline.data_contracts.errors import OperationsError, UsageError
from plumbline.data_contracts.secrets import mask
from plumbline.flows.graph.environment import plain_url
from plumbline.tasks.access.identity import who_answers
from plumbline.tasks.operations.announce import api_url
from plumbline.tasks.operations.services.addresses import known_server
from plumbline.tasks.operations.services.credentials import PREFECT, find_credentials
from plumbline.tasks.operations.services.health import foreign_server, refused_credentials, require_version, why_silent
from plumbline.tasks.operations.services.plan import HOST, services_folder
from plumbline.tasks.params.whole import Params

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient


class NoServer(UsageError):
    """None is named, and this workspace's own does not run."""


OWN = "this workspace's own"


@dataclass(frozen=True, slots=True)
class Server:
    """The server that is asked. `secret`: credentials of ours, for our own server alone."""

    url: str
    whose: str
    secret: str | None = None

    @property
    def told(self) -> dict[str, str]:
        """The server, for a command's JSON."""
        return {"url": mask(self.url), "whose": self.whose}

    def __str__(self) -> str:
        return f"{mask(self.url)} ({self.whose})"


def server_url() -> str | None:
    """The API of the configured Prefect server: PREFECT_API_URL, or the active profile's; None without one."""
    if os.environ.get("PREFECT_API_URL"):
        return api_url()
    from prefect.settings import get_current_settings

    return api_url(get_current_settings().api.url)


def find_server(root: Path, params: Params) -> Server:
    """The server that the user named, or else this workspace's own.

    Raises `NoServer` if there is neither, `UsageError` where another process answers on the port of our own.
    """
    own = f"http://{HOST}:{params.services.prefect_port}/api" if params.services.prefect else None
    named = plain_url(server_url())
    if named and named != own:
        return Server(named, _named_by())
    if own is None:
        raise NoServer(
            "no Prefect server is named, and services.prefect is false. Export PREFECT_API_URL, or set "
            "services.prefect to true and run `plumbline up`."
        )
    secret = find_credentials(services_folder(root)).get(PREFECT)
    standing = who_answers(own, secret)
    if standing == "silent":
        raise NoServer(
            f"no Prefect server answers at {own}. Start it and its worker with `plumbline up`, or set PREFECT_API_URL "
            f"to the API of another."
        )
    if standing == "foreign":
        raise UsageError(foreign_server(own))
    return Server(own, OWN, secret)


def told_server(root: Path) -> Server | None:
    """The server that events are sent to; None if none is configured, and they wait in the outbox."""
    url = plain_url(server_url())
    if not url:
        return None
    known = known_server(root)
    if known is not None and known.own and known.url == url:
        return Server(url, OWN)
    return Server(url, _named_by())


def _named_by() -> str:
    return "named by PREFECT_API_URL" if os.environ.get("PREFECT_API_URL") else "named by Prefect's settings"


@contextmanager
def connected(root: Path, params: Params) -> Iterator[tuple[SyncPrefectClient, Server]]:
    """A client of the server; inside, Prefect uses it too.

    Raises `UsageError` if none answers, it is another's or of another version, `OperationsError` where it reports no
    version.
    """
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    server = find_server(root, params)
    given = server.secret or os.environ.get("PREFECT_API_AUTH_STRING")
    secrets = {PREFECT_API_AUTH_STRING: given} if given else {}
    with (
        temporary_settings({PREFECT_API_URL: server.url, **secrets}),
        get_client(sync_client=True) as client,
    ):
        found = client.api_healthcheck()
        if found is not None:
            raise UsageError(
                f"no Prefect server answers at {server} ({why_silent(found)}). Start it and its worker with `plumbline "
                f"up`, or set PREFECT_API_URL to the server's API."
            )
        require_version(server.url, "PREFECT_API_URL", _told_version(client, server.url))
        yield client, server


def _told_version(client: SyncPrefectClient, url: str) -> str:
    from httpx import HTTPError, HTTPStatusError

    try:
        return str(Version(str(client.api_version())))
    except HTTPStatusError as error:
        if error.response.status_code == 401:
            raise UsageError(refused_credentials(url)) from None
        raise _no_version(url, error) from error
    except (HTTPError, ValueError) as error:
        raise _no_version(url, error) from error


def _no_version(url: str, error: Exception) -> OperationsError:
    return OperationsError(
        f"{mask(url)}: expected a Prefect server that reports its version, found: {mask(str(error))}. Correct "
        f"PREFECT_API_URL: it ends in /api."
    )
