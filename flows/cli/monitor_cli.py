"""`plumbline monitor`, `live`: what the served model does, and how sure that is."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from plumbline.data_contracts.errors import CheckFailed, UsageError
from plumbline.flows.cli.arguments import HERE, Directory, Json, workspace_root
from plumbline.flows.cli.output import Output
from plumbline.flows.graph import environment


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command()(monitor)
    app.command()(live)


def monitor(
    look: Annotated[
        str | None, typer.Option(help="Name of the look; the day (UTC) by default. What it saw counts once.")
    ] = None,
    workspace: Directory = HERE,
    json: Json = False,
) -> None:
    """Look at the champion's traffic, fresh labels and drift; a finding asks for a retraining run, once."""
    environment.quiet_prefect()
    from plumbline.flows.cli.temporary_server import temporary_server

    root, output = workspace_root(workspace), Output(json)
    with output.working("starting"), temporary_server(root):
        from plumbline.flows.monitor import monitor as flow
    with output.working("looking"):
        report = flow(str(root), look)
    output.result(report, lambda: _monitor_view(report))
    if report["findings"]:
        raise CheckFailed(f"found: {', '.join(report['findings'])}; the reasons are above and in {report['path']}.")


def live(
    since: Annotated[str | None, typer.Option(help="Requests from this time on, ISO 8601, UTC by default.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report as one HTML page.")] = None,
    workspace: Directory = HERE,
    json: Json = False,
) -> None:
    """Compare challenger and champion over the traffic they served, each figure with an anytime-valid interval."""
    from plumbline.data_contracts.artifact import write_bytes
    from plumbline.tasks.operations.monitoring.live_report import as_html
    from plumbline.tasks.operations.report_live import report_live
    from plumbline.tasks.params.document import load_params

    root, output = workspace_root(workspace), Output(json)
    start = None if since is None else _moment(since)
    if html is not None and not html.resolve().parent.is_dir():
        raise UsageError(f"--html {html}: expected a file in a folder that exists.")
    params, _ = load_params(root)
    with output.working("comparing"):
        report = report_live(root, params, since=start)
    if html is not None:
        write_bytes(html.resolve(), as_html(report).encode())
    output.result(report, lambda: _live_view(report))


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(
            f"--since {text[:60]}: expected a time such as 2026-05-01 or 2026-05-01T08:00+02:00."
        ) from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _monitor_view(report: dict[str, Any]) -> Any:
    from rich.markup import escape
    from rich.table import Table

    table = Table("monitor", "verdict", "why", box=None, title=f"{report['champion'] or 'no champion'}")
    for reading in report["readings"]:
        table.add_row(reading["name"], reading["verdict"], escape(reading["why"]))
    for name, request in report["requests"].items():
        table.add_row(name, "retraining", escape(f"{request['key']}: {request['state']}"))
    return table


def _live_view(report: dict[str, Any]) -> Any:
    from rich.markup import escape
    from rich.table import Table

    from plumbline.tasks.operations.monitoring.live_report import table, title

    view = Table(
        "figure", "value", "interval", "n", "smallest seen", "conclusion", box=None, title=escape(title(report))
    )
    for row in table(report):
        view.add_row(*map(escape, row))
    for note in report["notes"]:
        view.add_row("note", "", "", "", "", escape(note))
    return view
