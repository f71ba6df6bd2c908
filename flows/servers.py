"""The Prefect server that a command talks to: found, answering, and of the version this program was tested with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from packaging.version import Version

from data_contracts.errors import OperationsError, UsageError
from data_contracts.secrets import mask
from flows.params import Params
from tasks.announce import server_url
from tasks.services.health import require_version

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient


@contextmanager
def connected(params: Params) -> Iterator[SyncPrefectClient]:
    """A client of PREFECT_API_URL, or else of the server that `plumbline up` starts; inside, Prefect uses it too.

    Raises `UsageError` where none answers or it is of another version, `OperationsError` where it tells no version.
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
        require_version(url, "PREFECT_API_URL", _told_version(client, url))
        yield client


def _told_version(client: SyncPrefectClient, url: str) -> str:
    from httpx import HTTPError

    try:
        return str(Version(str(client.api_version())))
    except (HTTPError, ValueError) as error:
        raise OperationsError(
            f"{mask(url)}: expected a Prefect server that tells its version, found: {mask(str(error))}. Correct "
            f"PREFECT_API_URL: it ends in /api."
        ) from error
