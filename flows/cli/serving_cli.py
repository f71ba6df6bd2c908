"""`plumbline serve`, `harvest`, `traffic`, `canary`: the champion behind an endpoint, a challenger in its shadow."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from plumbline.data_contracts.errors import CheckFailed
from plumbline.flows.cli.arguments import HERE, Directory, Json, Overlays, Settings, workspace_root
from plumbline.flows.cli.ending import until_ended
from plumbline.flows.cli.output import Output
from plumbline.flows.cli.promote_cli import OverrideName, OverrideReason, override_of

Since = Annotated[datetime | None, typer.Option(help="Only what was received from this moment (UTC) on.")]

_canary = typer.Typer(no_args_is_help=True, help="Versions that answered a share of the users, and what came of it.")


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command()(serve)
    app.command()(harvest)
    app.command()(traffic)
    app.add_typer(_canary, name="canary")


def serve(
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="serving.port by default; 0: a free one.")] = None,
    alias: Annotated[str, typer.Option(help="Alias of the version that answers: champion or challenger.")] = "champion",
    params: Overlays = None,
    settings: Settings = None,
    workspace: Directory = HERE,
    json: Json = False,
) -> None:
    """Answer OpenAI's /v1/chat/completions with the version that holds an alias, following it, until ended."""
    from plumbline.tasks.operations.serve_model import serve_model, token_place
    from plumbline.tasks.params.document import load_params, resolve_overlays

    root, output = workspace_root(workspace), Output(json)
    loaded, _ = load_params(root, resolve_overlays(root, params or []), settings or [])

    def ready(url: str, version: str) -> None:
        place = token_place(root, loaded.serving)
        asked = f"The key that requests carry is in {place}." if place else "It asks for no key (serving.anonymous)."
        told = {"url": url, "version": version, "key": place}
        output.result(told, f"{version} answers on {url}/v1/chat/completions\n{asked}")
        sys.stdout.flush()

    with until_ended():
        serve_model(root, loaded, alias=alias, port=port, ready=ready)


def harvest(
    since: Since = None,
    export: Annotated[
        Path | None, typer.Option(help="Write both answers here for people to label, and harvest nothing.")
    ] = None,
    params: Overlays = None,
    settings: Settings = None,
    workspace: Directory = HERE,
    json: Json = False,
) -> None:
    """Turn mirrored answers and thumbs into feedback, each once; or export them for people to label."""
    from rich.table import Table

    from plumbline.tasks.operations.harvest_traffic import export_for_people, harvest_traffic
    from plumbline.tasks.params.document import load_params, resolve_overlays

    root, output = workspace_root(workspace), Output(json)
    loaded, _ = load_params(root, resolve_overlays(root, params or []), settings or [])
    if export is not None:
        rows = export_for_people(root, loaded, export, _utc(since))
        text = f"{rows} rows in {export}. Fill in label (a, b or tie), then plumbline ingest human_pairs {export}"
        output.result({"exported": rows, "file": str(export)}, text)
        return
    with output.working("harvesting"):
        done = harvest_traffic(root, loaded, _utc(since))
    table = Table("feedback", "batch", "", box=None)
    for source, item in done.items():
        counts = ", ".join(f"{name} {count}" for name, count in item["counts"].items())
        table.add_row(source, item["batch"] or "nothing new", counts)
    output.result(done, table)


def traffic(since: Since = None, workspace: Directory = HERE, json: Json = False) -> None:
    """Summarise what was answered: errors, refusals, violations, latencies and feedback by version."""
    from rich.table import Table

    from plumbline.tasks.operations.serving import log
    from plumbline.tasks.operations.serving.traffic import summarise
    from plumbline.tasks.params.document import load_params
    from plumbline.tasks.storage.database import read_database

    root = workspace_root(workspace)
    engine = read_database(root, load_params(root)[0].operations, log.METADATA)
    lines = summarise(log.interactions(engine, since=_utc(since)))
    table = Table("role", "version", "answers", "errors", "refusals", "violations", "p50 ms", "p95 ms", "", box=None)
    for line in lines:
        times = [f"{line['latency_ms'][name]:.0f}" if line["latency_ms"][name] else "-" for name in ("p50", "p95")]
        counts = [str(line[name]) for name in ("answers", "errors", "refusals", "violations")]
        acts = {**line["feedback"], **({"readers left": line["left"]} if line["left"] else {})}
        said = ", ".join(f"{kind} {count}" for kind, count in acts.items())
        table.add_row(line["role"], line["model_uri"], *counts, *times, said)
    Output(json).result({"versions": lines}, table if lines else "Nothing was answered yet.")


@_canary.command("list")
def canary_list(workspace: Directory = HERE, json: Json = False) -> None:
    """Show every canary: since when, and when and why it was sent back."""
    from dataclasses import asdict

    from rich.markup import escape
    from rich.table import Table

    from plumbline.tasks.operations.retry_canary import list_canaries
    from plumbline.tasks.params.document import load_params

    root = workspace_root(workspace)
    found = list_canaries(root, load_params(root)[0])
    table = Table("version", "since", "sent back", "why", box=None, title=f"{found.alias}: {found.holder or 'nobody'}")
    for item in found.canaries:
        table.add_row(item.challenger, item.started_at, item.returned_at or "-", escape(item.reason or ""))
    Output(json).result(asdict(found), table if found.canaries else "No canary was begun yet.")


@_canary.command("retry")
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
    """Let a version that its canary sent back try again, with fresh evidence: gates first, on record."""
    from plumbline.flows.graph.promotion_report import promotion_payload, promotion_view, refusal
    from plumbline.tasks.operations.retry_canary import retry_canary
    from plumbline.tasks.params.document import load_params

    named = override_of(override, override_reason)
    root, output = workspace_root(workspace), Output(json)
    with output.working("verifying and timing answers"):
        given = retry_canary(root, load_params(root)[0], model, reason=reason, override=named)
    output.result(promotion_payload(given), lambda: promotion_view(given))
    if not given.promoted:
        raise CheckFailed(refusal(given))


def _utc(moment: datetime | None) -> datetime | None:
    return moment if moment is None or moment.tzinfo else moment.replace(tzinfo=UTC)
