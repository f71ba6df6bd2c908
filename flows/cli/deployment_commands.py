"""The bodies of `plumbline deploy`, `schedule` and `run`."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from plumbline.data_contracts import errors
from plumbline.data_contracts.errors import CheckFailed, OperationsError, PlumblineError, StageError, UsageError
from plumbline.flows.cli.output import Output
from plumbline.flows.deployment.deployments import (
    NAMES,
    REJECTED,
    DescribedDeployment,
    apply,
    deployment_name,
    describe,
)
from plumbline.flows.deployment.servers import NoServer, Server, connected, find_server
from plumbline.flows.graph.environment import quiet_prefect
from plumbline.tasks.operations.announce import workspace_id
from plumbline.tasks.operations.services.plan import WORK_POOL
from plumbline.tasks.params.document import load_params, save_params
from plumbline.tasks.params.whole import Params

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun, State

_SHOWN_TIMES = 3
_LOOK_EVERY_S = 1.0
_RAISED = re.compile(r"encountered an exception: (\w+)")  # what Prefect says of a run that failed


def deploy(root: Path, output: Output) -> None:
    """`plumbline deploy`."""
    params, _ = load_params(root)
    quiet_prefect()
    with output.working("registering deployments"):
        changes = apply(root, params)
        server, rows = _deployed(root, params)
    table = Table("deployment", "schedule", "", box=None)
    for row in rows:
        table.add_row(row["name"], escape(row["cron"] or row["events"] or "by hand"), escape(row["url"] or ""))
    for change in changes:
        output.remark(change)
    output.remark(f"Prefect server: {server}")
    told = {"workspace": workspace_id(root), "server": server.told, "deployments": rows, "changes": changes}
    output.result(told, table)


def schedule(root: Path, cron: str | None, off: bool, timezone: str | None, output: Output) -> None:
    """`plumbline schedule [CRON|--off] [--timezone ZONE]`."""
    if off and cron is not None:
        raise UsageError(f"schedule: expected a cron schedule or --off, found both ({cron!r}).")
    params, document = load_params(root)
    section = document.setdefault("schedule", {})
    before = dict(section)
    if off or cron is not None:
        section["retrain_cron"] = cron
    if timezone is not None:
        section["timezone"] = timezone
    if dict(section) != before:
        with suppress(NoServer):  # one that is not ours is refused before anything is written
            find_server(root, params)
        from plumbline.tasks.params.document import PARAMS_FILE, validate_params

        params = validate_params(document, root / PARAMS_FILE)
        for line in save_params(root, document):
            output.remark(f"params.yaml: {line}")
    note = _apply_if_served(root, params) if before != dict(section) else None
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


def run(root: Path, name: str, settings: Sequence[str], wait: bool, output: Output) -> None:
    """`plumbline run DEPLOYMENT`."""
    if name not in NAMES:
        raise UsageError(f"{name}: unknown deployment; expected one of {', '.join(NAMES)}.")
    given = dict(_parameter(setting) for setting in settings)
    params, _ = load_params(root)
    quiet_prefect()
    with connected(root, params) as (client, server):
        output.remark(f"Prefect server: {server}")
        started = _start(client, name, workspace_id(root), given)
        url = _url("flow-run", started.id)
        if _idle(client):
            output.remark(f"no worker serves the pool {WORK_POOL}, so the run waits for one: `plumbline up`.")
        if wait:
            with output.working(f"running {name}"):
                started = _ended(client, started)
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
        _require_good_end(name, state, url)


def next_times(cron: str, timezone: str, count: int) -> list[datetime]:
    """When the server will start the next runs, by its own reckoning of daylight saving time."""
    from prefect.server.schemas.schedules import CronSchedule

    return list(asyncio.run(CronSchedule(cron=cron, timezone=timezone).get_dates(count)))


def _apply_if_served(root: Path, params: Params) -> str:
    """Tell the server, where one answers; else say what will."""
    quiet_prefect()
    try:
        server = find_server(root, params)
        apply(root, params)
    except UsageError as error:
        return f"params.yaml has the schedule; no server knows of it yet: {error}"
    return f"Prefect server: {server}"


def _deployed(root: Path, params: Params) -> tuple[Server, list[dict[str, Any]]]:
    with connected(root, params) as (client, server):
        return server, [_shown(client, described, workspace_id(root)) for described in describe(params, str(root))]


def _shown(client: SyncPrefectClient, described: DescribedDeployment, workspace: str) -> dict[str, Any]:
    found = client.read_deployment_by_name(f"{described.name}/{deployment_name(described.name, workspace)}")
    return {
        "name": described.name,
        "id": str(found.id),
        "cron": described.cron,
        "events": ", ".join(trigger.event for trigger in described.triggers),
        "paused": found.paused,
        "url": _url("deployment", found.id),
    }


def _start(client: SyncPrefectClient, name: str, workspace: str, given: Mapping[str, Any]) -> FlowRun:
    from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

    full = f"{name}/{deployment_name(name, workspace)}"
    try:
        found = client.read_deployment_by_name(full)
    except ObjectNotFound as error:
        raise UsageError(f"{full}: the server has no such deployment. Register it with `plumbline deploy`.") from error
    known = (found.parameter_openapi_schema or {}).get("properties", {})
    unknown = [key for key in given if key not in known]
    if unknown:
        raise UsageError(f"{name}: unknown parameter {', '.join(unknown)}; expected any of {', '.join(known)}.")
    try:
        return client.create_flow_run_from_deployment(found.id, parameters={**found.parameters, **given})
    except PrefectHTTPStatusError as error:
        raise UsageError(f"{name}: the server refused the parameters: {error.response.text[:300]}") from error


def _ended(client: SyncPrefectClient, started: FlowRun) -> FlowRun:
    while started.state is None or not started.state.is_final():
        time.sleep(_LOOK_EVERY_S)
        started = client.read_flow_run(started.id)
    return started


def _require_good_end(name: str, state: State[Any], url: str | None) -> None:
    """Raise what the command itself would have raised: a refusal is none of a stage."""
    told = f"{name}: the run ended as {state.name}: {state.message or 'its log says why'} {url or ''}".rstrip()
    if state.name == REJECTED:
        raise CheckFailed(told)
    if not state.is_completed():
        raised = _RAISED.search(state.message or "")
        kind = getattr(errors, raised[1], None) if raised else None
        if isinstance(kind, type) and issubclass(kind, PlumblineError):
            raise kind(told)
        raise StageError(told)


def _idle(client: SyncPrefectClient) -> bool:
    from prefect.exceptions import ObjectNotFound

    try:
        pool = client.read_work_pool(WORK_POOL)
    except ObjectNotFound as error:
        raise OperationsError(f"the server has no work pool {WORK_POOL}. Run `plumbline deploy`.") from error
    return pool.status is None or pool.status.value != "READY"


def _parameter(setting: str) -> tuple[str, Any]:
    key, sign, text = setting.partition("=")
    if not sign or not key:
        raise UsageError(f"--param {setting}: expected KEY=VALUE.")
    try:
        return key, YAML(typ="safe").load(text) if text else None
    except YAMLError as error:
        raise UsageError(f"--param {setting}: the value is not readable as YAML: {error}") from error


def _url(kind: str, of: Any) -> str | None:
    from prefect.utilities.urls import url_for

    return url_for(kind, obj_id=of)
