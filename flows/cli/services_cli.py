"""`plumbline up`, `down`, `status`: what a laptop needs, supervised on loopback."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from plumbline.flows.cli.arguments import HERE, Directory, Json, Overlays, Settings
from plumbline.flows.cli.output import Output


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command("up")(up)
    app.command("down")(down)
    app.command("status")(status)


def up(params: Overlays = None, settings: Settings = None, workspace: Directory = HERE, json: Json = False) -> None:
    """Start Prefect, a worker and MLflow on loopback, wait until healthy, register the deployments."""
    from plumbline.flows.cli import services

    services.up(_root(workspace), params or [], settings or [], Output(json))


def down(workspace: Directory = HERE, json: Json = False) -> None:
    """End the services of this workspace; running flow runs get SIGTERM first."""
    from plumbline.flows.cli import services

    services.down(_root(workspace), Output(json))


def status(
    credentials: Annotated[
        bool, typer.Option("--credentials", help="Show the user and password of each server instead, for its pages.")
    ] = False,
    workspace: Directory = HERE,
    json: Json = False,
) -> None:
    """Show each service: state, uptime, health, log. Exit code 1 when one that should run does not."""
    from plumbline.flows.cli import services

    if credentials:
        services.show_credentials(_root(workspace), Output(json))
    else:
        services.status(_root(workspace), Output(json))


def _root(workspace: Path) -> Path:
    # not `workspace_root`, which points PREFECT_API_URL at the services that these commands change
    from plumbline.data_contracts.private_files import keep_private
    from plumbline.flows.graph.workspaces import find_workspace

    root = find_workspace(Path(os.path.abspath(workspace)))
    keep_private(root)
    return root
