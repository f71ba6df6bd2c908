"""Which services run in a workspace, each as a command with its environment, its port and how its health is asked.

Commands and environments carry no secret: a secret of the user is named by the environment variable that holds it, one
of the workspace by its service, and `tasks.operations.services.launch` puts it in place in the process that needs it.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import orjson

from plumbline.data_contracts.errors import ParamsError
from plumbline.tasks.operations.services.credentials import MLFLOW, PREFECT, fingerprint
from plumbline.tasks.params.services import ServicesParams

HOST = "127.0.0.1"
WORK_POOL = "plumbline"
Probe = Literal["prefect", "worker", "mlflow", "http"]


@dataclass(frozen=True, slots=True)
class Service:
    """One service.

    `secrets` maps a variable of the service to the variable of the user that holds its value, `credentials` one to the
    service of this workspace whose credentials it takes.
    """

    name: str
    command: tuple[str, ...]
    probe: Probe
    url: str
    port: int | None = None
    port_key: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)
    credentials: Mapping[str, str] = field(default_factory=dict)
    stop_group: bool = True  # SIGTERM to the whole process group; the worker's flow runs get theirs first

    @property
    def digest(self) -> str:
        """Changes when the service has to be started again."""
        return hashlib.sha256(orjson.dumps(asdict(self), option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Plan:
    """The services of a workspace in the order in which they start; they stop in the reverse."""

    root: Path
    params: ServicesParams
    services: tuple[Service, ...]
    prefect_api_url: str
    mlflow_url: str | None

    @property
    def folder(self) -> Path:
        """The folder of configuration, socket and logs of the services."""
        return services_folder(self.root)

    @property
    def identity(self) -> str:
        """Changes when all has to be started again: other software, other values of secrets, other credentials."""
        facts = [sys.executable, *(version(name) for name in ("supervisor", "prefect", "mlflow"))]
        secrets = sorted({source for service in self.services for source in service.secrets.values()})
        facts += [f"{name}={os.environ.get(name, '')}" for name in secrets]
        facts.append(fingerprint(self.folder))
        return f"plumbline-{hashlib.sha256(orjson.dumps(facts)).hexdigest()[:16]}"


@dataclass(frozen=True, slots=True)
class IntakeEndpoint:
    """The HTTP endpoint that takes feedback in: its port, and the path that answers when it is well."""

    port: int
    health_path: str


def services_folder(root: Path) -> Path:
    """`.plumbline/services` of a workspace."""
    return root / ".plumbline" / "services"


def plan_services(
    root: Path, params: ServicesParams, *, store_uri: str, store_variable: str | None, intake: IntakeEndpoint
) -> Plan:
    """The services that should run. `store_uri` is MLflow's store, `store_variable` the variable it came from, if any.

    Raises `ParamsError` if the environment lacks what params name.
    """
    api_url = f"http://{HOST}:{params.prefect_port}/api" if params.prefect else _given_server()
    remote_store = store_uri.startswith(("http", "databricks"))
    mlflow = _mlflow(root, params, store_uri, store_variable) if params.mlflow and not remote_store else None
    services = [
        _prefect(root, params, api_url) if params.prefect else None,
        mlflow,
        _worker(root, params, api_url) if params.worker else None,
        _intake(root, params, intake, api_url) if params.intake else None,
    ]
    planned = tuple(service for service in services if service is not None)
    _refuse_shared_ports(planned)
    return Plan(root, params, planned, api_url, mlflow.url if mlflow else None)


def _given_server() -> str:
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        raise ParamsError(
            "services.prefect: false needs a server in the environment variable PREFECT_API_URL, found it unset. "
            "Export it, or set services.prefect to true for a server of the workspace's own."
        )
    return url.rstrip("/")


def _prefect(root: Path, params: ServicesParams, api_url: str) -> Service:
    port = str(params.prefect_port)
    return Service(
        "prefect",
        (
            sys.executable,
            "-P",
            "-m",
            "plumbline.flows.deployment.prefect_server",
            "--host",
            HOST,
            "--port",
            port,
            *_allowed(params),
        ),
        "prefect",
        api_url,
        params.prefect_port,
        "services.prefect_port",
        {
            **_prefect_environment(root, api_url),
            "PREFECT_UI_API_URL": api_url,
            # In memory, its habit, a restart would forget the places that runs hold, and they would be ended.
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        },
        {} if params.prefect_database is None else {"PREFECT_API_DATABASE_CONNECTION_URL": _database(params)},
        {"PREFECT_SERVER_API_AUTH_STRING": PREFECT, "PREFECT_API_AUTH_STRING": PREFECT},
    )


def _allowed(params: ServicesParams) -> tuple[str, ...]:
    hosts = [text for host in params.allowed_hosts for text in ("--allowed-host", host)]
    return (*hosts, *(text for origin in params.allowed_origins for text in ("--allowed-origin", origin)))


def _database(params: ServicesParams) -> str:
    name = str(params.prefect_database)[1:]
    url = os.environ.get(name, "")
    if not url.startswith(("postgresql+asyncpg://", "sqlite+aiosqlite://")):
        found = f"one that begins with {url.split('://')[0]}://" if "://" in url else "none"
        raise ParamsError(
            f"services.prefect_database: expected a URL postgresql+asyncpg://… in the environment variable {name}, "
            f"found {found}. Export it, or set services.prefect_database to null for SQLite."
        )
    return name


def _prefect_environment(root: Path, api_url: str) -> dict[str, str]:
    return {"PREFECT_HOME": str(root / ".plumbline" / "prefect"), "PREFECT_API_URL": api_url}


def _given(params: ServicesParams) -> dict[str, str]:
    """`secrets` of a client of Prefect: the user's own, for the user's server."""
    names = () if params.prefect else ("PREFECT_API_AUTH_STRING", "PREFECT_API_KEY")
    return {name: name for name in names if os.environ.get(name)}


def _own(params: ServicesParams) -> dict[str, str]:
    """`credentials` of a client of Prefect: ours, for our server."""
    return {"PREFECT_API_AUTH_STRING": PREFECT} if params.prefect else {}


def _worker(root: Path, params: ServicesParams, api_url: str) -> Service:
    limit = ("--limit", str(params.worker_limit))
    shared = () if params.prefect else ("--shared",)
    return Service(
        "worker",
        (sys.executable, "-m", "plumbline.flows.deployment.worker", "--name", worker_name(root), *limit, *shared),
        "worker",
        api_url,
        environment=_prefect_environment(root, api_url),
        secrets=_given(params),
        credentials=_own(params),
        stop_group=False,
    )


def worker_name(root: Path) -> str:
    """The same for every worker of a workspace, so that the server keeps one row of it."""
    # Prefect refuses / and % in it
    return f"{re.sub(r'[^A-Za-z0-9_.-]', '_', root.name)}-{hashlib.sha256(str(root).encode()).hexdigest()[:8]}"


def _mlflow(root: Path, params: ServicesParams, store_uri: str, store_variable: str | None) -> Service:
    port = str(params.mlflow_port)
    artifacts = (root / ".plumbline" / "mlartifacts").as_uri()
    given = {"MLFLOW_BACKEND_STORE_URI": store_uri} if store_variable is None else {}
    return Service(
        "mlflow",
        (
            sys.executable,
            "-P",
            "-m",
            "plumbline.tasks.registry.store.server",
            "--host",
            HOST,
            "--port",
            port,
            *_allowed(params),
        ),
        "mlflow",
        f"http://{HOST}:{port}",
        params.mlflow_port,
        "services.mlflow_port",
        {**given, "MLFLOW_DEFAULT_ARTIFACT_ROOT": artifacts, "MLFLOW_ARTIFACTS_DESTINATION": artifacts},
        {} if store_variable is None else {"MLFLOW_BACKEND_STORE_URI": store_variable},
        {"PLUMBLINE_MLFLOW_CREDENTIALS": MLFLOW},
    )


def _intake(root: Path, params: ServicesParams, intake: IntakeEndpoint, api_url: str) -> Service:
    return Service(
        "intake",
        (sys.executable, "-m", "plumbline", "intake", "serve", "-C", str(root)),
        "http",
        f"http://{HOST}:{intake.port}{intake.health_path}",
        intake.port,
        "intake.port",
        _prefect_environment(root, api_url),
        _given(params),
        _own(params),
    )


def _refuse_shared_ports(services: tuple[Service, ...]) -> None:
    taken: dict[int, str] = {}
    for service in services:
        if service.port is not None:
            if service.port in taken:
                raise ParamsError(
                    f"{service.port_key}: expected a port of its own, found {service.port}, which "
                    f"{taken[service.port]} has too. Choose another."
                )
            taken[service.port] = service.port_key
