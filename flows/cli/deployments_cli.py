"""`plumbline deploy`, `schedule` and `run`: flows that a server runs by itself."""

from __future__ import annotations

from typing import Annotated

import typer

from plumbline.flows.cli.arguments import HERE, Directory, Json, workspace_root
from plumbline.flows.cli.output import Output


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""

    @app.command()
    def deploy(workspace: Directory = HERE, json: Json = False) -> None:
        """Register deployments, schedules and event triggers with the Prefect server; again: nothing changes."""
        from plumbline.flows.cli import deployment_commands

        deployment_commands.deploy(workspace_root(workspace), Output(json))

    @app.command()
    def schedule(
        cron: Annotated[
            str | None, typer.Argument(help='When to retrain, such as "0 3 * * 1". Left out: show the schedule.')
        ] = None,
        off: Annotated[bool, typer.Option("--off", help="Retrain on no schedule.")] = False,
        timezone: Annotated[str | None, typer.Option(help="IANA time zone of all schedules, Europe/Berlin.")] = None,
        workspace: Directory = HERE,
        json: Json = False,
    ) -> None:
        """Set when the server retrains by itself, in params.yaml and on the server; show the next three times."""
        from plumbline.flows.cli import deployment_commands

        deployment_commands.schedule(workspace_root(workspace), cron, off, timezone, Output(json))

    @app.command()
    def run(
        deployment: Annotated[str, typer.Argument(help="retrain, retrain-on-fresh, poll-freshness, monitor, promote.")],
        param: Annotated[list[str] | None, typer.Option(help="KEY=VALUE of the run. Repeatable.")] = None,
        wait: Annotated[bool, typer.Option("--wait", help="Wait for the run to end.")] = False,
        workspace: Directory = HERE,
        json: Json = False,
    ) -> None:
        """Have the worker run a deployment once."""
        from plumbline.flows.cli import deployment_commands

        deployment_commands.run(workspace_root(workspace), deployment, param or [], wait, Output(json))
