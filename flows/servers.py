"""The Prefect server that a command talks to: found, answering, and of the version this program was tested with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from data_contracts.errors import OperationsError, UsageError
from data_contracts.secrets import mask
from flows.params import Params
from tasks.announce import server_url

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient


@contextmanager
def connected(params: Params) -> Iterator[SyncPrefectClient]:
    """A client of PREFECT_API_URL, or else of the server that `plumbline up` starts; inside, Prefect uses it too.

    Raises `UsageError` where none answers, and `OperationsError` for a server of another version.
    """
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    url = server_url() or f"http://127.0.0.1:{params.services.prefect_port}/api"
    with temporary_settings({PREFECT_API_URL: url}), get_client(sync_client=True) as client:
        found = client.api_healthcheck()
        if found is not None:
            raise UsageError(
                f"no Prefect server answers at {mask(url)} ({mask(str(found)) or type(found).__name__}). Start it and "
                f"its worker with `plumbline up`, or set PREFECT_API_URL to the server's API."
            )
        _require_same_version(client, url)
        yield client


def _require_same_version(client: SyncPrefectClient, url: str) -> None:
    """Refuse a server whose major and minor version differ: fields would be dropped without a word."""
    from httpx import HTTPError

    try:
        theirs = str(client.api_version())
    except (HTTPError, ValueError) as error:
        raise OperationsError(
            f"{mask(url)}: expected a Prefect server that tells its version, found: {mask(str(error))}. Correct "
            f"PREFECT_API_URL: it ends in /api."
        ) from error
    ours = client.client_version()
    if theirs.split(".")[:2] != ours.split(".")[:2]:
        raise OperationsError(
            f"{mask(url)}: expected a Prefect server {'.'.join(ours.split('.')[:2])}.x, as this program has {ours}, "
            f"found {theirs}. Upgrade the server, or name another in PREFECT_API_URL."
        )
