"""The command line. Exit codes: 0 done, 1 a gate or check said no, 2 wrong usage or params, 3 a stage failed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from plumbline.data_contracts.errors import CheckFailed
from plumbline.flows.cli import (
    audit_cli,
    backup_cli,
    deployments_cli,
    intake_cli,
    keys_cli,
    monitor_cli,
    promote_cli,
    provenance_cli,
    services_cli,
    serving_cli,
)
from plumbline.flows.cli.account import settle_account
from plumbline.flows.cli.arguments import HERE, Directory, Json, Overlays, Settings, workspace_root
from plumbline.flows.cli.ending import exit_code_of
from plumbline.flows.cli.output import Output
from plumbline.flows.graph import environment

app = typer.Typer(
    name="plumbline",
    help="Raw human feedback in, an aligned and audited language model out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command()
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


@app.command()
def retrain(
    params: Overlays = None, settings: Settings = None, workspace: Directory = HERE, json: Json = False
) -> None:
    """Run the whole loop: what is up to date is reused, the rest is redone, the model is registered."""
    from plumbline.flows.cli import runner

    output = Output(json)
    report = runner.retrain_here(workspace_root(workspace), params or [], settings or [], output)
    output.result(report.payload, report.view)
    if not report.passed:
        raise CheckFailed("the gate said no: the model is registered as rejected, with the reasons above.")


@app.command()
def compare(
    params: Overlays = None, settings: Settings = None, workspace: Directory = HERE, json: Json = False
) -> None:
    """Fine-tune and evaluate the variants of params `compare` on the same data; recommend one, with reasons."""
    from plumbline.flows.cli import runner

    output = Output(json)
    report = runner.compare_here(workspace_root(workspace), params or [], settings or [], output)
    output.result(report.payload, report.view)
    if report.failed:
        raise CheckFailed(f"failed: {', '.join(report.failed)}, for the reasons above; run it again to try them anew.")


@app.command("self-play")
def self_play(
    prompts: Annotated[
        int | None, typer.Option(min=1, help="Training prompts to answer; self_play.prompts by default.")
    ] = None,
    params: Overlays = None,
    settings: Settings = None,
    workspace: Directory = HERE,
    json: Json = False,
) -> None:
    """Let the policy answer against π_ref, a judge label the answers, and ingest them as judged_pairs."""
    from plumbline.flows.cli import commands

    chosen = [] if prompts is None else [f"self_play.prompts={prompts}"]
    commands.self_play(workspace_root(workspace), params or [], [*(settings or []), *chosen], Output(json))


@app.command()
def stage(name: str, workspace: Directory = HERE) -> None:
    """Run one stage in this process, as `dvc repro` does. It does not commit to DVC."""
    from plumbline.flows.cli import runner

    runner.stage_here(workspace_root(workspace), name)


@app.command()
def ingest(
    source: Annotated[str, typer.Argument(help="Kind of feedback: human_pairs, judged_pairs, unpaired_responses.")],
    files: Annotated[list[str], typer.Argument(help="Files, Parquet, or a datasets folder or name.")],
    workspace: Directory = HERE,
    json: Json = False,
) -> None:
    """Take feedback files into the append-only raw store and version it."""
    from plumbline.flows.cli import commands

    commands.ingest(workspace_root(workspace), source, files, Output(json))


@app.command()
def validate(
    source: Annotated[str, typer.Argument(help="Kind of feedback: human_pairs, judged_pairs, unpaired_responses.")],
    files: Annotated[list[str], typer.Argument(help="Files, Parquet, or a datasets folder or name.")],
    params: Overlays = None,
    settings: Settings = None,
    workspace: Directory = HERE,
    json: Json = False,
) -> None:
    """Check files against their contract and curate them, as a dry run: nothing is ingested."""
    from plumbline.flows.cli import commands

    commands.validate(workspace_root(workspace), source, files, params or [], settings or [], Output(json))


@app.command()
def restore(
    model: Annotated[str, typer.Argument(help="models:/NAME@ALIAS, models:/NAME/VERSION or NAME.")],
    to: Annotated[Path, typer.Option(help="The new folder to restore into.")],
    workspace: Directory = HERE,
    json: Json = False,
) -> None:
    """Bring back the exact dataset, reference policy, params and model of a registered version."""
    from plumbline.flows.cli import commands

    commands.restore(workspace_root(workspace), model, to.resolve(), Output(json))


@app.command()
def doctor(
    fix: Annotated[
        bool, typer.Option("--fix", help="Take from other users what they may read of feedback and models.")
    ] = False,
    workspace: Directory = HERE,
    json: Json = False,
) -> None:
    """Check versions, services, disk, GPU and who may read the files; say what is missing and what to do."""
    from plumbline.flows.cli import doctor as examination

    examination.doctor(workspace.resolve(), Output(json), fix=fix)


_AREAS = (
    services_cli,
    deployments_cli,
    intake_cli,
    promote_cli,
    serving_cli,
    monitor_cli,
    audit_cli,
    provenance_cli,
    backup_cli,
    keys_cli,
)
for area in _AREAS:
    area.register(app)


def main() -> None:
    """Run the command line and end the process with the documented exit code."""
    sys.exit(exit_code_of(_command))


def _command() -> None:
    settle_account()
    environment.prepare()
    app(prog_name="plumbline")


if __name__ == "__main__":
    main()
