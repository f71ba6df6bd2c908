"""Asking services how they are, over HTTP: Prefect's API, MLflow's registry, the worker's heartbeat."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from typing import Any

import httpx
from packaging.version import InvalidVersion, Version

from data_contracts.errors import UsageError
from data_contracts.secrets import mask
from tasks.services.plan import HOST, WORK_POOL, Plan, Probe, Service, worker_name

_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Health:
    """Whether a service does its work, and what it said."""

    ok: bool
    note: str


def check(plan: Plan, service: Service, since: float = 0.0) -> Health:
    """Ask one service. What it does not answer, or answers wrongly, is in the note.

    `since`: a time stamp in seconds; a worker's heartbeat before it is that of an earlier worker.
    """
    try:
        if service.probe == "worker":
            return _worker(plan, service, since)
        return _PROBES[service.probe](plan, service)
    except httpx.HTTPError as error:
        return Health(False, f"{service.url}: {type(error).__name__}: {error}")
    except (ValueError, KeyError, TypeError) as error:  # an answer that is not what this service would say
        return Health(False, f"{service.url}: unexpected answer ({type(error).__name__}: {error})")


def server_version(api_url: str) -> str | None:
    """The version that a Prefect server at the URL says it has; nothing where none answers as one."""
    try:
        answer = _ask("GET", f"{api_url}/admin/version")
        said = answer.json() if answer.status_code == 200 else None
        return str(Version(said)) if isinstance(said, str) else None
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, InvalidVersion):
        return None


def require_version(api_url: str, where: str, found: str | None = None) -> None:
    """Raise `UsageError` when a Prefect server answers at the URL with another minor version than ours.

    Its API would drop the fields that it does not know without a word. `found` is the version that a client with
    credentials was told; without it the server is asked here.
    """
    found, ours = found or server_version(api_url), version("prefect")
    if found is not None and Version(found).release[:2] != Version(ours).release[:2]:
        raise UsageError(
            f"{where}: expected a Prefect server {ours} at {mask(api_url)}, as installed here, found {found}. Run both "
            f"with one version: upgrade the server or this environment (requirements.lock), or unset PREFECT_API_URL "
            f"and start a server of the workspace's own with `plumbline up`."
        )


def require_server(api_url: str) -> None:
    """Raise `UsageError` unless a Prefect server of our version answers; for one that we did not start."""
    if server_version(api_url) is None:
        raise UsageError(
            f"PREFECT_API_URL: expected a Prefect server at {mask(api_url)}, found none that answers. Start it, "
            f"correct the URL, or unset it and set services.prefect to true for a server of the workspace's own."
        )
    require_version(api_url, "PREFECT_API_URL")


def _prefect(plan: Plan, service: Service) -> Health:
    healthy = _ask("GET", f"{service.url}/health").raise_for_status().json() is True
    found, ours = server_version(service.url), version("prefect")
    if found != ours:
        return Health(False, f"expected a Prefect server {ours}, found {found}: `plumbline down`, then `plumbline up`")
    return Health(healthy, f"Prefect {found}" if healthy else "its database does not answer")


def _worker(plan: Plan, service: Service, since: float) -> Health:
    url, name = f"{service.url}/work_pools/{WORK_POOL}/workers/filter", worker_name(plan.root)
    answer = _ask("POST", url, json={})
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
    _ask("GET", f"{service.url}/health").raise_for_status()
    # /health answers without a database; a list of models does not
    _ask("GET", f"{service.url}/api/2.0/mlflow/registered-models/search?max_results=1").raise_for_status()
    return Health(True, f"MLflow {_ask('GET', f'{service.url}/version').text}, the registry opens")


def _stamp(iso: str) -> float:
    return datetime.fromisoformat(iso).timestamp()


def _http(plan: Plan, service: Service) -> Health:
    answer = _ask("GET", service.url)
    return Health(answer.is_success, f"answers {answer.status_code}")


def _ask(method: str, url: str, **content: Any) -> httpx.Response:
    """One request. Loopback is asked directly, whatever proxy the environment names, and is shown no key."""
    local = httpx.URL(url).host == HOST
    key = None if local else os.environ.get("PREFECT_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(timeout=_TIMEOUT_S, trust_env=not local, headers=headers) as client:
        return client.request(method, url, **content)


_PROBES: Mapping[Probe, Callable[[Plan, Service], Health]] = {
    "prefect": _prefect,
    "mlflow": _mlflow,
    "http": _http,
}
