"""`plumbline init` and `doctor`: make a workspace, and find what is missing."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from plumbline.data_contracts.errors import CheckFailed, UsageError
from plumbline.flows.cli import completion
from plumbline.flows.cli.arguments import HERE, Directory, Json, workspace_root
from plumbline.flows.cli.output import Output

app = typer.Typer()


@app.command(epilog="Example: plumbline init my-assistant")
def init(
    directory: Annotated[Path, typer.Argument(help="The folder to make or complete.")],
    recipe: Annotated[
        str | None, typer.Option(help="The recipe to start from.", autocompletion=completion.recipes)
    ] = None,
    sample_world: Annotated[
        bool, typer.Option("--sample-world", help="Start from invented feedback with a known truth, to try the loop.")
    ] = False,
    remote: Annotated[str | None, typer.Option(help="DVC remote URL; a local folder by default.")] = None,
    json: Json = False,
) -> None:
    """Make a workspace: params, graph, git, DVC and a remote. Existing files are kept."""
    from plumbline.flows.graph.workspaces import SAMPLE_WORLD, init_workspace

    if sample_world and recipe not in (None, SAMPLE_WORLD):
        raise UsageError(f"init: expected --recipe or --sample-world, found both ({recipe}). Choose one.")
    root = directory.resolve()
    written = init_workspace(root, remote, SAMPLE_WORLD if sample_world else recipe)
    Output(json).result(
        {"workspace": str(root), "written": written},
        f"Workspace {root}: wrote {', '.join(written) or 'nothing, it was whole'}.\n"
        + "\n".join(_next_steps(directory, root)),
    )


def _next_steps(directory: Path, root: Path) -> list[str]:
    """At most three lines: from here to a trained model."""
    from plumbline.tasks.params.layers import load_params

    params = load_params(root)[0]
    if params.sample_world.enabled:
        return [f"Next: cd {directory} && plumbline retrain"]
    known = params.reference.base
    model = [] if known else ["plumbline params set reference.base=MODEL   # a hub name, or the folder of your model"]
    return [
        f"Next: cd {directory} && plumbline validate FILE{f' --base {known}' if known else ' --base MODEL'}",
        *(f"      {line}" for line in model),
        "      plumbline ingest FILE && plumbline retrain",
    ]


@app.command(epilog="Example: plumbline migrate -C my-assistant")
def migrate(workspace: Directory = HERE, json: Json = False) -> None:
    """Bring the files of an older workspace to this version.

    Choices get their names of today; outputs of stages that mean the same stay.
    """
    from plumbline.flows.graph.migrate import migrate as verb
    from plumbline.flows.graph.workspaces import exclusive_run

    root = workspace_root(workspace, use_services=False)
    with exclusive_run(root):
        lines = verb(root)
    Output(json).result({"changed": lines}, "\n".join(lines) or "Nothing to do: the workspace is of today.")


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
