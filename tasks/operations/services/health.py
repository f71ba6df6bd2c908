"""Asking services how they are, over HTTP: Prefect's API, MLflow's registry, the worker's heartbeat.

A server of ours is sent its credentials once it has proved that it is ours. The user's own server is sent what the user
gave for it, and nothing of ours.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from typing import Any

import httpx
from packaging.version import InvalidVersion, Version

from plumbline.data_contracts.errors import UsageError
from plumbline.data_contracts.secrets import mask
from plumbline.tasks.access.identity import who_answers
from plumbline.tasks.access.requests import basic
from plumbline.tasks.operations.services.credentials import MLFLOW, PREFECT, credentials_file, find_credentials
from plumbline.tasks.operations.services.plan import HOST, WORK_POOL, Plan, Probe, Service, worker_name

_TRIES_S = (5.0, 10.0, 20.0)  # for an answer; a port that nobody listens on refuses at once
_AGAIN_S = 1.0  # after 503: a database that was busy for a moment


@dataclass(frozen=True, slots=True)
class Health:
    """The health of a service, and its own words."""

    ok: bool
    note: str


def check(plan: Plan, service: Service, since: float = 0.0) -> Health:
    """Ask one service. What it does not answer, or answers wrongly, is in the note.

    `since`: a time stamp in seconds; a worker's heartbeat before it is that of an earlier worker.
    """
    began = time.monotonic()
    try:
        health = _worker(plan, service, since) if service.probe == "worker" else _PROBES[service.probe](plan, service)
    except httpx.TimeoutException:
        return Health(False, f"{service.url}: slow to answer: nothing within {time.monotonic() - began:.0f} s")
    except httpx.HTTPError as error:
        return Health(False, f"{service.url}: {type(error).__name__}: {error}")
    except UsageError as error:  # another server, or credentials that others may read
        return Health(False, str(error))
    except (ValueError, KeyError, TypeError) as error:  # an answer that is not what this service would say
        return Health(False, f"{service.url}: unexpected answer ({type(error).__name__}: {error})")
    seconds = time.monotonic() - began
    return health if seconds < _TRIES_S[0] else Health(health.ok, f"{health.note}; slow to answer: {seconds:.0f} s")


def server_version(api_url: str, headers: Mapping[str, str] | None = None) -> str | None:
    """The version that a Prefect server at the URL says it has; nothing if none answers as one or says it."""
    try:
        answer = _ask("GET", f"{api_url}/admin/version", headers)
        said = answer.json() if answer.status_code == 200 else None
        return str(Version(said)) if isinstance(said, str) else None
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, InvalidVersion):
        return None


def asks_for_credentials(url: str) -> bool:
    """True if the address answers 401 to a request without credentials."""
    try:
        return _ask("GET", url).status_code == 401
    except (httpx.HTTPError, httpx.InvalidURL):
        return False


def given_credentials() -> dict[str, str]:
    """The header of what the user gave for the server of PREFECT_API_URL, as Prefect's own client makes it."""
    if secret := os.environ.get("PREFECT_API_AUTH_STRING"):
        return basic(secret)
    key = os.environ.get("PREFECT_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}


def require_version(api_url: str, where: str, found: str | None = None) -> None:
    """Raise `UsageError` when a Prefect server answers at the URL with another minor version than ours.

    Its API would drop the fields that it does not know without a word. `found` is the version that a client with
    credentials was checked; without it the server is asked here.
    """
    found, ours = found or server_version(api_url, given_credentials()), version("prefect")
    if found is not None and Version(found).release[:2] != Version(ours).release[:2]:
        raise UsageError(
            f"{where}: expected a Prefect server {ours} at {mask(api_url)}, as installed here, found {found}. Run both "
            f"with one version: upgrade the server or this environment (requirements.lock), or unset PREFECT_API_URL "
            f"and start a server of the workspace's own with `plumbline up`."
        )


def require_server(api_url: str) -> None:
    """Raise `UsageError` unless a Prefect server of our version answers; for one that we did not start."""
    headers = given_credentials()
    if server_version(api_url, headers) is None:
        if asks_for_credentials(f"{api_url}/admin/version"):
            raise UsageError(refused_credentials(api_url))
        raise UsageError(
            f"PREFECT_API_URL: expected a Prefect server at {mask(api_url)}, found none that answers. Start it, "
            f"correct the URL, or unset it and set services.prefect to true for a server of the workspace's own."
        )
    require_version(api_url, "PREFECT_API_URL")


def why_silent(error: Exception) -> str:
    """The words for a server that gave no answer: one that is slow is there."""
    if isinstance(error, httpx.TimeoutException):
        return "slow to answer: nothing came in time"
    return mask(str(error)) or type(error).__name__


def refused_credentials(api_url: str) -> str:
    """The words for a server that answers 401."""
    given = "others" if given_credentials() else "none"
    return (
        f"PREFECT_API_URL: the Prefect server at {mask(api_url)} asks for credentials (401), and was given {given}. It "
        f"is not this workspace's own server. Export PREFECT_API_AUTH_STRING (or PREFECT_API_KEY) for it, or unset "
        f"PREFECT_API_URL and start a server of the workspace's own with `plumbline up`."
    )


def _prefect(plan: Plan, service: Service) -> Health:
    headers = _credentials(plan, PREFECT, service.url)
    healthy = _ask("GET", f"{service.url}/health").raise_for_status().json() is True
    found, ours = server_version(service.url, headers), version("prefect")
    if found is None:
        return Health(False, f"{service.url}: answers, and does not report its version")
    if found != ours:
        return Health(False, f"expected a Prefect server {ours}, found {found}: `plumbline down`, then `plumbline up`")
    return Health(healthy, f"Prefect {found}" if healthy else "its database does not answer")


def _worker(plan: Plan, service: Service, since: float) -> Health:
    url, name = f"{service.url}/work_pools/{WORK_POOL}/workers/filter", worker_name(plan.root)
    own = plan.params.prefect
    headers = _credentials(plan, PREFECT, service.url) if own else given_credentials()
    answer = _ask("POST", url, headers, json={})
    if answer.status_code == 404:
        return Health(False, f"work pool {WORK_POOL} is not there yet")
    found = answer.raise_for_status().json()
    mine = [item for item in found if item["name"] == name and _stamp(item["last_heartbeat_time"]) >= since]
    if not mine:
        return Health(False, f"no heartbeat yet of worker {name}")
    note = f"pool {WORK_POOL}, last heartbeat {mine[0]['last_heartbeat_time']}"
    return Health(
        mine[0]["status"] == "ONLINE", note if mine[0]["status"] == "ONLINE" else f"{mine[0]['status']}; {note}"
    )


def _mlflow(plan: Plan, service: Service) -> Health:
    headers = _credentials(plan, MLFLOW, service.url)
    _ask("GET", f"{service.url}/health").raise_for_status()
    # /health answers without a database; a list of models does not
    _ask("GET", f"{service.url}/api/2.0/mlflow/registered-models/search?max_results=1", headers).raise_for_status()
    return Health(True, f"MLflow {_ask('GET', f'{service.url}/version', headers).text}, the registry opens")


def _credentials(plan: Plan, name: str, url: str) -> dict[str, str]:
    """The header for a server of ours. Raises `UsageError` if another answers, `ConnectError` if none does."""
    secret = find_credentials(plan.folder).get(name)
    if secret is None:
        raise UsageError(
            f"{url}: expected credentials in {credentials_file(plan.folder)}, found none: an earlier version started "
            f"it, open to everyone. `plumbline up` starts it again with some."
        )
    match who_answers(url, secret):
        case "own":
            return basic(secret)
        case "silent":
            raise httpx.ConnectError("does not answer")
        case _:
            raise UsageError(foreign_server(url))


def foreign_server(url: str) -> str:
    """The words for a server that answers at an address of ours and does not prove to be ours."""
    return (
        f"{url}: expected this workspace's own server, found another process that answers there and does not prove "
        f"that it has this workspace's credentials; it was sent none. End that process, or `plumbline up` with "
        f"other ports (services.prefect_port, services.mlflow_port)."
    )


def _stamp(iso: str) -> float:
    return datetime.fromisoformat(iso).timestamp()


def _http(plan: Plan, service: Service) -> Health:
    answer = _ask("GET", service.url)
    return Health(answer.is_success, f"answers {answer.status_code}")


def _ask(method: str, url: str, headers: Mapping[str, str] | None = None, **content: Any) -> httpx.Response:
    """One question, asked again where the answer is late or 503. Loopback is asked directly, whatever proxy is named.

    Raises `httpx.TimeoutException` if none came in all that time.
    """
    local = httpx.URL(url).host == HOST
    with httpx.Client(trust_env=not local, headers=headers) as client:
        for timeout in _TRIES_S[:-1]:
            try:
                answer = client.request(method, url, timeout=timeout, **content)
            except httpx.TimeoutException:
                continue
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                return answer
            time.sleep(_AGAIN_S)
        return client.request(method, url, timeout=_TRIES_S[-1], **content)


_PROBES: Mapping[Probe, Callable[[Plan, Service], Health]] = {
    "prefect": _prefect,
    "mlflow": _mlflow,
    "http": _http,
}
