"""`plumbline init`: make a workspace."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plumbline.flows.cli.arguments import Json
from plumbline.flows.cli.output import Output

app = typer.Typer()


@app.command(epilog="Example: plumbline init my-assistant --remote s3://bucket/my-assistant")
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
