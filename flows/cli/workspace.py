"""`plumbline init` and `doctor`: make a workspace, and find what is missing."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from plumbline.data_contracts.errors import CheckFailed
from plumbline.flows.cli.arguments import HERE, Directory, Json
from plumbline.flows.cli.output import Output

app = typer.Typer()


@app.command(epilog="Example: plumbline init my-assistant")
def init(
    directory: Annotated[Path, typer.Argument(help="The folder to make or complete.")],
    remote: Annotated[str | None, typer.Option(help="DVC remote URL; a local folder by default.")] = None,
    json: Json = False,
) -> None:
    """Make a workspace: params, graph, git, DVC and a remote. Existing files are kept."""
    from plumbline.flows.graph.workspaces import init_workspace

    root = directory.resolve()
    written = init_workspace(root, remote)
    Output(json).result(
        {"workspace": str(root), "written": written},
        f"Workspace {root}: wrote {', '.join(written) or 'nothing, it was whole'}.\n"
        f"Next: cd {directory} && plumbline retrain",
    )


@app.command(epilog="Example: plumbline doctor --fix")
def doctor(
    fix: Annotated[
        bool, typer.Option("--fix", help="Close files to other users, and bring back changed batches of raw feedback.")
    ] = False,
    workspace: Directory = HERE,
    json: Json = False,
) -> None:
    """Check versions, services, disk, GPU and file rights.

    The table says what to do. Exit code 1 when something needed is not well.
    """
    from plumbline.flows.cli.doctor_checks import examine, mend

    folder = workspace.resolve()
    if fix:
        mend(folder)
    findings = examine(folder)
    table = Table("", "what", "found", "what to do", title="plumbline doctor", box=None)
    for finding in findings:
        table.add_row("ok" if finding.ok else "!!", finding.name, finding.found, finding.advice)
    ill = [finding.name for finding in findings if not finding.ok]
    Output(json).result({"ok": not ill, "findings": [asdict(finding) for finding in findings]}, table)
    if ill:
        raise CheckFailed(f"not well: {', '.join(ill)}; the table says what to do.")
