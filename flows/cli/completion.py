"""Names that the shell offers for a word that is half typed. They come from the code and the workspace's params."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import typer

from plumbline.data_contracts.errors import PlumblineError

if TYPE_CHECKING:
    from pydantic import BaseModel


def sources() -> list[str]:
    """Kinds of feedback."""
    from plumbline.tasks.data.feedback import SOURCES

    return list(SOURCES)


def shapes() -> list[str]:
    """Shapes of other tools that feedback is written in."""
    from plumbline.tasks.data.feedback.shapes import SHAPES

    return list(SHAPES)


def recipes() -> list[str]:
    """Recipes that a workspace can start from."""
    from plumbline.flows.graph.workspaces import recipes as names

    return names()


def stages() -> list[str]:
    """Stages of the graph."""
    from plumbline.flows.graph.stages import STAGES

    return list(STAGES)


def deployments() -> list[str]:
    """Deployments that a server runs."""
    from plumbline.flows.deployment.deployments import NAMES

    return list(NAMES)


def aliases() -> list[str]:
    """Aliases that a version can hold."""
    from plumbline.tasks.operations.promotion.gates import GATES_OF

    return list(GATES_OF)


def answering_aliases() -> list[str]:
    """Aliases whose versions answer people."""
    from plumbline.tasks.operations.promotion.gates import ANSWERING

    return list(ANSWERING)


def models(ctx: typer.Context) -> list[str]:
    """The workspace's model, by name and by each alias; nothing outside a workspace."""
    from plumbline.flows.graph.workspaces import find_workspace
    from plumbline.tasks.params.layers import load_params

    folder = Path(os.path.abspath(ctx.params.get("workspace") or ""))
    try:
        name = load_params(find_workspace(folder))[0].registry.model_name
    except PlumblineError:  # the command itself says so
        return []
    return [name, *(f"models:/{name}@{alias}" for alias in aliases())]


def settings() -> list[tuple[str, str]]:
    """Keys of params, with their descriptions."""
    from plumbline.tasks.params.whole import Params

    return list(_keys(Params, ""))


def param_keys() -> list[tuple[str, str]]:
    """Keys of params without the sign that a value follows."""
    return [(key.rstrip("="), description) for key, description in settings()]


def _keys(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, str]]:
    from pydantic import BaseModel

    for name, field in section.model_fields.items():
        kinds = [field.annotation, *get_args(field.annotation)]
        nested = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if nested:
            yield from _keys(nested[0], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}=", field.description or ""
