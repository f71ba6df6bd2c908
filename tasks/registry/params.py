"""Params of the registry: where models are registered, under which name, and how strict about git."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from data_contracts.params import Section
from data_contracts.secrets import has_password

_TRACKING_URI = re.compile(
    r"\$[A-Za-z_]\w*|(https?|sqlite|(postgresql|mysql|mssql)(\+\w+)?)://\S+|databricks(-uc)?(://\S+)?"
)


class RegistryParams(Section):
    """Where and under which name models are registered."""

    model_name: str = Field(
        default="assistant",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,199}$",
        description="Registered name in MLflow: letters, digits, '_', '.', '-'.",
    )
    tracking_uri: str | None = Field(
        default=None,
        description="MLflow tracking and registry URI (http(s)://…, postgresql://…, sqlite:///…), or $NAME, the "
        "environment variable that holds it (the place for a password); null: SQLite and artifacts under .plumbline "
        "in the workspace.",
    )
    experiment: str = Field(default="plumbline", min_length=1, description="MLflow experiment that holds the runs.")
    on_dirty: Literal["record", "refuse"] = Field(
        default="record",
        description="Uncommitted changes in the workspace: 'record' puts the diff into the manifest, 'refuse' stops "
        "before any work.",
    )
    push: bool = Field(
        default=True, description="Push every DVC object to the default remote before a version is registered."
    )

    signing_key: str | None = Field(
        default=None,
        min_length=1,
        description="Private key (EC, P-256, PEM, mode 0600, outside the workspace) that signs versions and the "
        "promotion ledger: a path, or $NAME, the environment variable that holds the path; null: "
        "~/.config/plumbline/signing.key, made on first use. Without it one can verify, with .plumbline/signing.pub.",
    )

    @field_validator("tracking_uri")
    @classmethod
    def _is_a_store_without_a_password(cls, uri: str | None) -> str | None:
        if uri is not None and has_password(uri):
            raise ValueError(
                "expected a URI without a password, because every model's manifest keeps these params. Put the whole "
                "URI into the environment variable MLFLOW_TRACKING_URI and set this to $MLFLOW_TRACKING_URI"
            )
        if uri is not None and not _TRACKING_URI.fullmatch(uri):
            raise ValueError(
                "expected http(s)://…, sqlite:///…, postgresql://…, mysql://…, mssql://…, databricks, "
                "or $NAME of an environment variable"
            )
        return uri
