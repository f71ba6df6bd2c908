"""`plumbline backup` and `plumbline restore-workspace`: a lost machine costs nothing that was accepted."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from plumbline.flows.cli.arguments import HERE, Directory, Json, workspace_root
from plumbline.flows.cli.output import Output


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command("backup")(backup)
    app.command("restore-workspace")(restore_workspace)


def backup(
    directory: Annotated[Path, typer.Argument(help="The new or empty folder to save into, outside of the workspace.")],
    keys: Annotated[
        bool,
        typer.Option("--keys", help="Also save the signing key and other secrets: guard the backup as you do them."),
    ] = False,
    workspace: Directory = HERE,
    json: Json = False,
) -> None:
    """Save the workspace: databases, raw feedback, models, ledger, git and DVC. Services may go on running."""
    from plumbline.tasks.operations.backup_workspace import backup_workspace
    from plumbline.tasks.params.document import load_params

    root, output = workspace_root(workspace), Output(json)
    with output.working(f"saving {root}"):
        report = backup_workspace(root, directory.resolve(), load_params(root)[0], keys=keys)
    lines = [f"{report.to}: saved {report.files} files, {report.bytes:,} bytes.", *report.left_out]
    lines.append(f"Bring it back with `plumbline restore-workspace {directory} NEW_FOLDER`.")
    output.result(asdict(report), "\n".join(lines))


def restore_workspace(
    directory: Annotated[Path, typer.Argument(metavar="BACKUP", help="A folder that `plumbline backup` made.")],
    to: Annotated[Path, typer.Argument(metavar="NEW_FOLDER", help="The new or empty folder of the workspace.")],
    keys: Annotated[
        bool, typer.Option("--keys", help="Also put the signing key where this user's key belongs.")
    ] = False,
    json: Json = False,
) -> None:
    """Make a workspace out of a backup, after verifying every file of it."""
    from plumbline.data_contracts.private_files import keep_private
    from plumbline.tasks.operations.restore_workspace import restore_workspace as verb

    keep_private()
    output = Output(json)
    with output.working(f"restoring {directory}"):
        restored = verb(directory.resolve(), to.resolve(), keys=keys)
    output.result(
        asdict(restored), "\n".join([f"Workspace {restored.workspace}: {restored.files} files.", *restored.to_do])
    )
