"""`plumbline serve`, `harvest`, `traffic`, `canary`: the champion behind an endpoint, a challenger in its shadow."""

from __future__ import annotations

import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from plumbline.data_contracts.errors import CheckFailed
from plumbline.flows.cli import completion
from plumbline.flows.cli.arguments import HERE, Directory, Json, Trial, TrialOverlays, loaded
from plumbline.flows.cli.ending import until_ended
from plumbline.flows.cli.output import Output
from plumbline.flows.cli.promotion import OverrideName, OverrideReason, override_of

Since = Annotated[datetime | None, typer.Option(help="Only what was received from this moment (UTC) on.")]

app = typer.Typer()


@app.command(epilog="Example: plumbline serve --port 8080 --alias champion")
def serve(
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="serving.port by default; 0: a free one.")] = None,
    alias: Annotated[
        str,
        typer.Option(
            help="Alias of the version that answers: champion or challenger.",
            autocompletion=completion.answering_aliases,
        ),
    ] = "champion",
    params: TrialOverlays = None,
    settings: Trial = None,
    workspace: Directory = HERE,
    json: Json = False,
) -> None:
    """Answer OpenAI's chat API with the version of an alias.

    The address ends in /v1/chat/completions. When the alias moves, the new version answers. Runs until ended.
    """
    from plumbline.tasks.operations.serve_model import serve_model, token_place

    root, read = loaded(workspace, params, settings)
    output = Output(json)

    def ready(url: str, version: str) -> None:
        place = token_place(root, read.serving)
        asked = f"The key that requests carry is in {place}." if place else "It asks for no key (serving.anonymous)."
        told = {"url": url, "version": version, "key": place}
        output.result(told, f"{version} answers on {url}/v1/chat/completions\n{asked}")
        sys.stdout.flush()

    with until_ended():
        serve_model(root, read, alias=alias, port=port, ready=ready)


@app.command(epilog="Example: plumbline harvest --export to-label.jsonl")
def harvest(
    since: Since = None,
    export: Annotated[
        Path | None, typer.Option(help="Write both answers here for people to label, and harvest nothing.")
    ] = None,
    params: TrialOverlays = None,
    settings: Trial = None,
    workspace: Directory = HERE,
    json: Json = False,
) -> None:
    """Turn served answers and thumbs into feedback.

    Each is taken once. With --export, answers are written for people to label instead.
    """
    from plumbline.flows.deployment.servers import server_url
    from plumbline.tasks.operations.harvest_traffic import export_for_people, harvest_traffic

    root, read = loaded(workspace, params, settings)
    output = Output(json)
    if export is not None:
        rows = export_for_people(root, read, export, _utc(since))
        text = f"{rows} rows in {export}. Fill in label (a, b or tie), then plumbline ingest human_pairs {export}"
        output.result({"exported": rows, "file": str(export)}, text)
        return
    with output.working("harvesting"):
        done = harvest_traffic(root, read, _utc(since), server_url())
    table = Table("feedback", "batch", "", box=None)
    for source, item in done.items():
        counts = ", ".join(f"{name} {count}" for name, count in item["counts"].items())
        table.add_row(source, item["batch"] or "nothing new", counts)
    output.result(done, table)


@app.command(epilog="Example: plumbline traffic --since 2026-05-01")
def traffic(since: Since = None, workspace: Directory = HERE, json: Json = False) -> None:
    """Summarise what each version answered.

    Counts answers, errors, refusals, violations and feedback; shows latencies.
    """
    from plumbline.tasks.operations.serving import log
    from plumbline.tasks.operations.serving.traffic import summarise
    from plumbline.tasks.storage.database import read_database

    root, params = loaded(workspace)
    engine = read_database(root, params.operations, log.METADATA)
    lines = summarise(log.interactions(engine, since=_utc(since)))
    table = Table("role", "version", "answers", "errors", "refusals", "violations", "p50 ms", "p95 ms", "", box=None)
    for line in lines:
        times = [f"{line['latency_ms'][name]:.0f}" if line["latency_ms"][name] else "-" for name in ("p50", "p95")]
        counts = [str(line[name]) for name in ("answers", "errors", "refusals", "violations")]
        acts = {**line["feedback"], **({"readers left": line["left"]} if line["left"] else {})}
        said = ", ".join(f"{kind} {count}" for kind, count in acts.items())
        table.add_row(line["role"], line["model_uri"], *counts, *times, said)
    Output(json).result({"versions": lines}, table if lines else "Nothing was answered yet.")


canary = typer.Typer(no_args_is_help=True, help="Show canaries, and let a version try again.")
app.add_typer(canary, name="canary")


@canary.command("list", epilog="Example: plumbline canary list")
def canary_list(workspace: Directory = HERE, json: Json = False) -> None:
    """List every canary: since when, and when and why it was sent back."""
    from plumbline.tasks.operations.retry_canary import list_canaries

    root, params = loaded(workspace)
    found = list_canaries(root, params)
    table = Table("version", "since", "sent back", "why", box=None, title=f"{found.alias}: {found.holder or 'nobody'}")
    for item in found.canaries:
        table.add_row(item.challenger, item.started_at, item.returned_at or "-", escape(item.reason or ""))
    Output(json).result(asdict(found), table if found.canaries else "No canary was begun yet.")


@canary.command("retry", epilog="Example: plumbline canary retry assistant/3 --reason fixed")
def canary_retry(
    reason: Annotated[str, typer.Option(help="Why it may try again, in words; kept in the ledger.")],
    model: Annotated[
        str | None, typer.Argument(help="models:/MODEL/VERSION or MODEL/VERSION; by default the last one sent back.")
    ] = None,
    override: OverrideName = None,
    override_reason: OverrideReason = "",
    workspace: Directory = HERE,
    json: Json = False,
) -> None:
    """Let a version that its canary sent back try again.

    It passes the gates first. The retry is on record.
    """
    from plumbline.flows.graph.promotion_report import promotion_payload, promotion_view, refusal
    from plumbline.tasks.operations.retry_canary import retry_canary

    named = override_of(override, override_reason)
    root, params = loaded(workspace)
    output = Output(json)
    with output.working("verifying and timing answers"):
        given = retry_canary(root, params, model, reason=reason, override=named)
    output.result(promotion_payload(given), lambda: promotion_view(given))
    if not given.promoted:
        raise CheckFailed(refusal(given))


def _utc(moment: datetime | None) -> datetime | None:
    return moment if moment is None or moment.tzinfo else moment.replace(tzinfo=UTC)
