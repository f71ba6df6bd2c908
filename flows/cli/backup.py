"""`plumbline backup` and `plumbline restore-workspace`: a lost machine costs nothing that was accepted."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from plumbline.flows.cli.arguments import HERE, Directory, Json, loaded
from plumbline.flows.cli.output import Output

app = typer.Typer()


@app.command(epilog="Example: plumbline backup /mnt/safe/assistant --keys")
def backup(
    directory: Annotated[Path, typer.Argument(help="The new or empty folder to save into, outside of the workspace.")],
    keys: Annotated[
        bool,
        typer.Option("--keys", help="Also save the signing key and other secrets: guard the backup as you do them."),
    ] = False,
    workspace: Directory = HERE,
    json: Json = False,
) -> None:
    """Save the whole workspace into a folder.

    Databases, feedback, models, ledger, git and DVC are saved. Services may go on running.
    """
    from plumbline.tasks.operations.backup_workspace import backup_workspace

    root, params = loaded(workspace)
    output = Output(json)
    with output.working(f"saving {root}"):
        report = backup_workspace(root, directory.resolve(), params, keys=keys)
    lines = [f"{report.to}: saved {report.files} files, {report.bytes:,} bytes.", *report.left_out]
    lines.append(f"Bring it back with `plumbline restore-workspace {directory} NEW_FOLDER`.")
    output.result(asdict(report), "\n".join(lines))


@app.command("restore-workspace", epilog="Example: plumbline restore-workspace /mnt/safe/assistant assistant --keys")
def restore_workspace(
    directory: Annotated[Path, typer.Argument(metavar="BACKUP", help="A folder that `plumbline backup` made.")],
    to: Annotated[Path, typer.Argument(metavar="NEW_FOLDER", help="The new or empty folder of the workspace.")],
    keys: Annotated[
        bool, typer.Option("--keys", help="Also put the signing key where this user's key belongs.")
    ] = False,
    json: Json = False,
) -> None:
    """Make a workspace out of a backup, verified first."""
    from plumbline.data_contracts.private_files import keep_private
    from plumbline.tasks.operations.restore_workspace import restore_workspace as verb

    keep_private()
    output = Output(json)
    with output.working(f"restoring {directory}"):
        restored = verb(directory.resolve(), to.resolve(), keys=keys)
    output.result(
        asdict(restored), "\n".join([f"Workspace {restored.workspace}: {restored.files} files.", *restored.to_do])
    )
