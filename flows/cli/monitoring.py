"""`plumbline monitor`, `live`: what the served model does, and how sure that is."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from plumbline.data_contracts.errors import CheckFailed, UsageError
from plumbline.flows.cli.arguments import HERE, Directory, Json, loaded, workspace_root
from plumbline.flows.cli.output import Output
from plumbline.flows.graph import environment

app = typer.Typer()


@app.command(epilog="Example: plumbline monitor --look 2026-05-01")
def monitor(
    look: Annotated[
        str | None, typer.Option(help="Name of the look; the day (UTC) by default. What it saw counts once.")
    ] = None,
    workspace: Directory = HERE,
    json: Json = False,
) -> None:
    """Check the champion's traffic, fresh labels and drift.

    Each finding asks once for a retraining run. Exit code 1 when there is one.
    """
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


@app.command(epilog="Example: plumbline live --since 2026-05-01 --html live.html")
def live(
    since: Annotated[str | None, typer.Option(help="Requests from this time on, ISO 8601, UTC by default.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report as one HTML page.")] = None,
    workspace: Directory = HERE,
    json: Json = False,
) -> None:
    """Compare challenger and champion on served traffic.

    Each figure has an anytime-valid interval.
    """
    from plumbline.data_contracts.artifact import write_bytes
    from plumbline.tasks.operations.monitoring.live_report import as_html
    from plumbline.tasks.operations.report_live import report_live

    start = None if since is None else _moment(since)
    if html is not None and not html.resolve().parent.is_dir():
        raise UsageError(f"--html {html}: expected a file in a folder that exists.")
    root, params = loaded(workspace)
    output = Output(json)
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


def _monitor_view(report: dict[str, Any]) -> Table:
    table = Table("monitor", "verdict", "why", box=None, title=f"{report['champion'] or 'no champion'}")
    for reading in report["readings"]:
        table.add_row(reading["name"], reading["verdict"], escape(reading["why"]))
    for name, request in report["requests"].items():
        table.add_row(name, "retraining", escape(f"{request['key']}: {request['state']}"))
    return table


def _live_view(report: dict[str, Any]) -> Table:
    from plumbline.tasks.operations.monitoring.live_report import table, title

    view = Table(
        "figure", "value", "interval", "n", "smallest seen", "conclusion", box=None, title=escape(title(report))
    )
    for row in table(report):
        view.add_row(*map(escape, row))
    for note in report["notes"]:
        view.add_row("note", "", "", "", "", escape(note))
    return view
