"""Options that commands share, and the workspace that a command works in."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plumbline.data_contracts.errors import UsageError
from plumbline.flows.cli import completion
from plumbline.flows.cli.output import Output

if TYPE_CHECKING:
    from plumbline.tasks.params.whole import Params

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]
# Not `readable`: asked with the real user's rights alone, and what may not be read names itself when it is.
Directory = Annotated[
    Path, typer.Option("-C", "--workspace", help="The workspace, or a folder inside it.", readable=False)
]
Overlays = Annotated[
    list[Path] | None, typer.Option("--params", help="A YAML file merged into params.yaml, where it stays. Repeatable.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="KEY=VALUE with a dotted key, written to params.yaml, where it stays. Repeatable.",
        autocompletion=completion.settings,
    ),
]
Once = Annotated[
    list[str] | None,
    typer.Option(
        "--once",
        help="KEY=VALUE for this run alone; params.yaml stays as it is. Repeatable.",
        autocompletion=completion.settings,
    ),
]
Trial = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="KEY=VALUE for this command alone, dotted key. Repeatable.", autocompletion=completion.settings
    ),
]
TrialOverlays = Annotated[
    list[Path] | None, typer.Option("--params", help="A YAML file that holds for this command alone. Repeatable.")
]
Model = Annotated[
    str,
    typer.Argument(help="models:/NAME@ALIAS, models:/NAME/VERSION or NAME.", autocompletion=completion.models),
]
Why = Annotated[str, typer.Option(help="Why; kept with your name and the time.")]
HERE = Path()


def workspace_root(workspace: Path, *, use_services: bool = True) -> Path:
    """The workspace at or above a folder. Raises `UsageError` if there is none.

    `use_services`: talk to the Prefect server that `plumbline up` started here, unless the user named another.
    """
    from plumbline.data_contracts.private_files import keep_private
    from plumbline.flows.graph import environment
    from plumbline.flows.graph.workspaces import find_workspace

    root = find_workspace(Path(os.path.abspath(workspace)))
    keep_private(root)
    if use_services:
        environment.use_services(root)
    return root


def loaded(
    workspace: Path, overlays: list[Path] | None = None, settings: list[str] | None = None
) -> tuple[Path, Params]:
    """The workspace and its params, with overlays and settings for this command alone."""
    from plumbline.tasks.params.layers import load_params, resolve_overlays

    root = workspace_root(workspace)
    params, _ = load_params(root, resolve_overlays(root, overlays or []), settings or [])
    return root, params


def loaded_or_default(
    workspace: Path, output: Output, overlays: list[Path] | None = None, settings: list[str] | None = None
) -> tuple[Path, Params]:
    """As `loaded`, for what needs no server; outside of a workspace, and without -C, a new folder and the defaults.

    It is said on stderr that the defaults hold.
    """
    from plumbline.tasks.params.layers import load_params, resolve_overlays
    from plumbline.tasks.params.section import PARAMS_FILE

    try:
        root = workspace_root(workspace, use_services=False)
    except UsageError:
        if workspace != HERE:
            raise
        root = Path(tempfile.mkdtemp(prefix="plumbline-no-workspace-"))
        (root / PARAMS_FILE).touch()
        output.remark("Not inside a workspace: the default params hold (`plumbline init DIR` makes one).")
    params, _ = load_params(root, resolve_overlays(root, overlays or []), settings or [])
    return root, params
