"""Params of the registry: where models are registered, under which name, and how strict about git."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from data_contracts.params import Section


class RegistryParams(Section):
    """Where and under which name models are registered."""

    model_name: str = Field(
        default="assistant",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,199}$",
        description="Registered name in MLflow: letters, digits, '_', '.', '-'.",
    )
    tracking_uri: str | None = Field(
        default=None,
        description="MLflow tracking and registry URI (http(s)://… or sqlite:///…); null: SQLite and artifacts under "
        ".plumbline in the workspace.",
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
