"""Options that commands share, and the workspace they stand in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]
# Not `readable`: asked with the real user's rights alone, and what may not be read names itself when it is.
Directory = Annotated[
    Path, typer.Option("-C", "--workspace", help="The workspace, or a folder inside it.", readable=False)
]
Overlays = Annotated[
    list[Path] | None, typer.Option("--params", help="A YAML file merged over params.yaml. Repeatable.")
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="KEY=VALUE over params.yaml, dotted key. Repeatable.")
]
HERE = Path()


def workspace_root(workspace: Path) -> Path:
    """The workspace at or above a folder, its own Prefect server in use. Raises `UsageError` where there is none."""
    from plumbline.data_contracts.private_files import keep_private
    from plumbline.flows.graph.environment import use_services
    from plumbline.flows.graph.workspaces import find_workspace

    root = find_workspace(Path(os.path.abspath(workspace)))
    keep_private(root)
    use_services(root)
    return root
