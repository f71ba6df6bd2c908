"""`plumbline deploy`, `schedule` and `run`: flows that a server runs by itself."""

from __future__ import annotations

import asyncio
import json as json_module
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from plumbline.data_contracts.errors import UsageError
from plumbline.flows.cli import completion
from plumbline.flows.cli.arguments import HERE, Directory, Json, loaded, workspace_root
from plumbline.flows.cli.output import Output
from plumbline.flows.graph.environment import quiet_prefect

if TYPE_CHECKING:
    from plumbline.tasks.params.whole import Params

app = typer.Typer()
_SHOWN_TIMES = 3


@app.command(epilog="Example: plumbline deploy")
def deploy(workspace: Directory = HERE, json: Json = False) -> None:
    """Register deployments, schedules and event triggers.

    The workspace's Prefect server keeps them. A second call changes nothing.
    """
    from plumbline.flows.deployment.deployments import apply, deployed
    from plumbline.tasks.operations.announce import workspace_id

    root, params = loaded(workspace)
    output = Output(json)
    quiet_prefect()
    with output.working("registering deployments"):
        changes = apply(root, params)
        server, rows = deployed(root, params)
    table = Table("deployment", "schedule", "", box=None)
    for row in rows:
        table.add_row(row["name"], escape(row["cron"] or row["events"] or "by hand"), escape(row["url"] or ""))
    for change in changes:
        output.remark(change)
    output.remark(f"Prefect server: {server}")
    told = {"workspace": workspace_id(root), "server": server.told, "deployments": rows, "changes": changes}
    output.result(told, table)


@app.command(epilog='Example: plumbline schedule "0 3 * * 1" --timezone Europe/Berlin')
def schedule(
    cron: Annotated[
        str | None, typer.Argument(help='When to retrain, such as "0 3 * * 1". Left out: show the schedule.')
    ] = None,
    off: Annotated[bool, typer.Option("--off", help="Retrain on no schedule.")] = False,
    timezone: Annotated[str | None, typer.Option(help="IANA time zone of all schedules, Europe/Berlin.")] = None,
    workspace: Directory = HERE,
    json: Json = False,
) -> None:
    """Set or show when the server retrains by itself.

    The schedule is kept in params.yaml and on the server. Shows the next three runs.
    """
    from plumbline.flows.deployment.servers import NoServer, find_server
    from plumbline.tasks.params.document import save_params
    from plumbline.tasks.params.layers import load_params

    root, output = workspace_root(workspace), Output(json)
    if off and cron is not None:
        raise UsageError(f"schedule: expected a cron schedule or --off, found both ({cron!r}).")
    before = load_params(root)[0]
    settings = [f"schedule.retrain_cron={json_module.dumps(cron)}"] if off or cron is not None else []
    if timezone is not None:
        settings.append(f"schedule.timezone={json_module.dumps(timezone)}")
    params, document = load_params(root, (), settings)
    if params != before:
        with suppress(NoServer):  # one that is not ours is refused before anything is written
            find_server(root, params)
        for line in save_params(root, document):
            output.remark(f"params.yaml: {line}")
    note = _apply_if_served(root, params) if params != before else None
    wanted = params.schedule
    times = [] if wanted.retrain_cron is None else next_times(wanted.retrain_cron, wanted.timezone, _SHOWN_TIMES)
    shown = Table("retrain", wanted.retrain_cron or "on no schedule", box=None)
    for moment in times:
        shown.add_row("next", f"{moment:%a %Y-%m-%d %H:%M %Z}")
    if note is not None:
        output.remark(note)
    output.result(
        {
            "retrain_cron": wanted.retrain_cron,
            "timezone": wanted.timezone,
            "next": [moment.isoformat() for moment in times],
        },
        shown,
    )


@app.command(epilog="Example: plumbline run retrain --wait")
def run(
    deployment: Annotated[
        str,
        typer.Argument(
            help="retrain, retrain-on-fresh, poll-freshness, monitor, promote.", autocompletion=completion.deployments
        ),
    ],
    param: Annotated[list[str] | None, typer.Option(help="KEY=VALUE of the run. Repeatable.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the run to end.")] = False,
    workspace: Directory = HERE,
    json: Json = False,
) -> None:
    """Have the worker run a deployment once."""
    from plumbline.flows.deployment import runs
    from plumbline.flows.deployment.deployments import NAMES, page_of
    from plumbline.flows.deployment.servers import connected
    from plumbline.tasks.operations.announce import workspace_id
    from plumbline.tasks.operations.services.plan import WORK_POOL

    if deployment not in NAMES:
        raise UsageError(f"{deployment}: unknown deployment; expected one of {', '.join(NAMES)}.")
    given = dict(_parameter(setting) for setting in param or [])
    root, params = loaded(workspace)
    output = Output(json)
    quiet_prefect()
    with connected(root, params) as (client, server):
        output.remark(f"Prefect server: {server}")
        started = runs.start_run(client, deployment, workspace_id(root), given)
        url = page_of("flow-run", started.id)
        if runs.is_idle(client):
            output.remark(f"no worker serves the pool {WORK_POOL}, so the run waits for one: `plumbline up`.")
        if wait:
            with output.working(f"running {deployment}"):
                started = runs.await_end(client, started)
    state = started.state
    shown = f"{started.name}: {state.name if state else 'Scheduled'}" + (
        f", {state.message}" if state and state.message else ""
    )
    output.result(
        {
            "flow_run_id": str(started.id),
            "name": started.name,
            "state": state.name if state else None,
            "message": state.message if state else None,
            "url": url,
            "server": server.told,
        },
        f"{shown}\n{url or ''}".strip(),
    )
    if wait and state is not None:
        runs.require_good_end(deployment, state, url)


def next_times(cron: str, timezone: str, count: int) -> list[datetime]:
    """The times of the server's next runs, by its own reckoning of daylight saving time."""
    from prefect.server.schemas.schedules import CronSchedule

    return list(asyncio.run(CronSchedule(cron=cron, timezone=timezone).get_dates(count)))


def _apply_if_served(root: Path, params: Params) -> str:
    """Register the schedule if a server answers; else say why not."""
    from plumbline.flows.deployment.deployments import apply
    from plumbline.flows.deployment.servers import find_server

    quiet_prefect()
    try:
        server = find_server(root, params)
        apply(root, params)
    except UsageError as error:
        return f"params.yaml has the schedule; no server knows of it yet: {error}"
    return f"Prefect server: {server}"


def _parameter(setting: str) -> tuple[str, Any]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    key, sign, text = setting.partition("=")
    if not sign or not key:
        raise UsageError(f"--param {setting}: expected KEY=VALUE.")
    try:
        return key, YAML(typ="safe").load(text) if text else None
    except YAMLError as error:
        raise UsageError(f"--param {setting}: the value is not readable as YAML: {error}") from error
