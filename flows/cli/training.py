"""`plumbline retrain`, `compare`, `self-play` and `stage`: runs in this process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from plumbline.data_contracts.errors import CheckFailed
from plumbline.flows.cli import completion
from plumbline.flows.cli.arguments import HERE, Directory, Json, Once, Overlays, Settings, workspace_root
from plumbline.flows.cli.output import Output

if TYPE_CHECKING:
    from plumbline.tasks.evaluation.self_play import SelfPlayed

app = typer.Typer()


@app.command(epilog="Example: plumbline retrain --set finetune.dpo.beta=0.2")
def retrain(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would run and why; change nothing.")] = False,
    params: Overlays = None,
    settings: Settings = None,
    once: Once = None,
    workspace: Directory = HERE,
    json: Json = False,
) -> None:
    """Run the whole loop and register the model.

    What is up to date is reused. Exit code 1 when the gate says no.
    """
    from plumbline.flows.cli import report, runner

    root, output = workspace_root(workspace, use_services=not dry_run), Output(json)
    if dry_run:
        _show_plan(root, params or [], settings or [], once or [], output)
        return
    registered, seconds = runner.retrain_here(root, params or [], settings or [], output, once or [])
    payload = report.payload_of(registered, seconds)
    output.result(payload, lambda: Group(*report.tables_of(registered, seconds, root)))
    if not registered.passed:
        raise CheckFailed("the gate said no: the model is registered as rejected, with the reasons above.")


def _show_plan(root: Path, overlays: list[Path], settings: list[str], once: list[str], output: Output) -> None:
    from plumbline.flows.cli.plan_view import plan_view
    from plumbline.flows.graph.plan import plan_run

    plan = plan_run(root, overlays, settings, once)
    output.result(plan.as_dict(), lambda: plan_view(plan))


@app.command(epilog="Example: plumbline compare --set finetune.dpo.beta=0.2 --json")
def compare(
    params: Overlays = None,
    settings: Settings = None,
    once: Once = None,
    workspace: Directory = HERE,
    json: Json = False,
) -> None:
    """Train variants on the same data and recommend one.

    Params `compare` lists the variants.
    """
    from plumbline.flows.cli import runner
    from plumbline.flows.cli.comparison_report import comparison_payload, comparison_view

    output = Output(json)
    compared = runner.compare_here(workspace_root(workspace), params or [], settings or [], output, once or [])
    output.result(comparison_payload(compared), lambda: comparison_view(compared))
    if compared.failed:
        failed = ", ".join(compared.failed)
        raise CheckFailed(f"failed: {failed}, for the reasons above; run it again to try them anew.")


@app.command("self-play", epilog="Example: plumbline self-play --prompts 512")
def self_play(
    prompts: Annotated[
        int | None, typer.Option(min=1, help="Training prompts to answer; self_play.prompts by default.")
    ] = None,
    params: Overlays = None,
    settings: Settings = None,
    once: Once = None,
    workspace: Directory = HERE,
    json: Json = False,
) -> None:
    """Make judged pairs: the policy answers against π_ref.

    A judge labels the answers; they are ingested as judged_pairs.
    """
    from plumbline.flows.cli import runner

    chosen = [] if prompts is None else [f"self_play.prompts={prompts}"]
    root, output = workspace_root(workspace), Output(json)
    played = runner.self_play_here(root, params or [], settings or [], output, [*(once or []), *chosen])
    batch = played.batch.path.relative_to(root).as_posix()
    output.result(
        {
            "batch": batch,
            "sha256": played.batch.digest,
            "new": played.batch.new,
            "counts": played.counts,
            "judge": played.reliability,
        },
        lambda: _played(played, batch, root),
    )


def _played(played: SelfPlayed, batch: str, root: Path) -> Table:
    table = Table("prompts", "", box=None)
    for name, count in played.counts.items():
        table.add_row(name.replace("_", " "), str(count))
    kappa = played.reliability["kappa"]
    agreement = "not measured" if kappa is None else f"{kappa:.3f}"
    table.add_row("judge", f"{played.reliability['judge']}, kappa {agreement} with people")
    table.add_row("batch", f"{batch} ({'new' if played.batch.new else 'already there'})")
    table.add_row("next", f"plumbline retrain -C {escape(str(root))}")
    return table


@app.command(epilog="Example: plumbline stage curate")
def stage(
    name: Annotated[str, typer.Argument(help="A stage of dvc.yaml.", autocompletion=completion.stages)],
    workspace: Directory = HERE,
) -> None:
    """Run one stage in this process, as `dvc repro` does.

    Nothing is committed to DVC.
    """
    from plumbline.flows.cli import runner

    runner.stage_here(workspace_root(workspace), name)
