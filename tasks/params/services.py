"""Params of `services`."""

from __future__ import annotations

import re

from pydantic import Field, field_validator, model_validator

from plumbline.tasks.params.host_names import HostName, Origin
from plumbline.tasks.params.section import Section

_VARIABLE = re.compile(r"\$[A-Za-z_]\w*")


class ServicesParams(Section):
    """What `plumbline up` starts. Everything listens on 127.0.0.1 alone, and asks for credentials."""

    prefect: bool = Field(
        default=True,
        description="Start a Prefect server; false: use the one in the environment variable PREFECT_API_URL.",
    )
    prefect_port: int = Field(default=4200, ge=1024, le=65535, description="TCP port of the Prefect server and its UI.")
    prefect_database: str | None = Field(
        default=None,
        description="$NAME, the environment variable with the server's database URL (postgresql+asyncpg://…); null: "
        "SQLite under .plumbline/prefect. Postgres, where several clients write at once.",
    )
    worker: bool = Field(default=True, description="Start a worker of the process pool `plumbline`.")
    worker_limit: int = Field(default=4, ge=1, le=256, description="Flow runs that the worker runs at once.")
    mlflow: bool = Field(
        default=True,
        description="Start MLflow's server and UI on the registry, unless registry.tracking_uri is a server.",
    )
    mlflow_port: int = Field(default=5000, ge=1024, le=65535, description="TCP port of MLflow.")
    intake: bool = Field(
        default=False,
        description="Start the HTTP endpoint that takes feedback in (params `intake`); it needs its token.",
    )
    allowed_hosts: list[HostName] = Field(
        default_factory=list,
        description="Names beside loopback's under which Prefect's and MLflow's servers may be asked (the Host "
        "header), without a port: those of a proxy before them.",
    )
    allowed_origins: list[Origin] = Field(
        default_factory=list,
        description="Origins beside their own (https://name[:port]) whose pages may ask Prefect's and MLflow's "
        "servers.",
    )
    start_timeout_s: float = Field(
        default=180.0, gt=0, le=3600, description="Seconds that `up` waits for a service to become healthy."
    )
    stop_timeout_s: float = Field(
        default=20.0,
        gt=0,
        le=600,
        description="Seconds between SIGTERM and SIGKILL of a service or a flow run that its worker has started.",
    )
    restarts: int = Field(
        default=5,
        ge=0,
        le=100,
        description="Times in a row a service that ends within its first 20 seconds is started again, each a second "
        "later than the one before, until it is given up.",
    )
    log_megabytes: int = Field(default=10, ge=1, le=10_000, description="Size in MB at which a log file is rotated.")
    log_backups: int = Field(default=3, ge=0, le=100, description="Rotated log files kept of each service.")

    @field_validator("prefect_database")
    @classmethod
    def _names_a_variable(cls, value: str | None) -> str | None:
        if value is not None and not _VARIABLE.fullmatch(value):
            raise ValueError("expected $NAME of an environment variable that holds the URL, because it has a password")
        return value

    @model_validator(mode="after")
    def _ports_differ(self) -> ServicesParams:
        if self.prefect_port == self.mlflow_port:
            raise ValueError(f"prefect_port and mlflow_port are both {self.mlflow_port}; choose two")
        return self
