"""`plumbline up`, `down` and `status`: the services of a workspace, supervised on loopback."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from plumbline.data_contracts.errors import CheckFailed, UsageError
from plumbline.data_contracts.private_files import close_to_others
from plumbline.flows.cli.arguments import HERE, Directory, Json, Overlays, Settings, workspace_root
from plumbline.flows.cli.output import Output

if TYPE_CHECKING:
    from plumbline.tasks.operations.services.operate import ServiceStatus
    from plumbline.tasks.operations.services.plan import Plan
    from plumbline.tasks.params.whole import Params

app = typer.Typer()


@app.command(epilog="Example: plumbline up --set services.mlflow=false")
def up(params: Overlays = None, settings: Settings = None, workspace: Directory = HERE, json: Json = False) -> None:
    """Start Prefect, a worker and MLflow on loopback.

    Registers the deployments. Ends when all services are healthy.
    """
    from plumbline.tasks.operations.services.operate import bring_up, look
    from plumbline.tasks.params.document import save_params
    from plumbline.tasks.params.layers import load_params, resolve_overlays

    root, output = _root(workspace), Output(json)
    read, document = load_params(root, resolve_overlays(root, params or []), settings or [])
    _settle_location(root, read)
    plan = planned(root, read)
    for line in save_params(root, document):
        output.remark(f"params.yaml: {line}")
    _close_to_others(root, read, output)
    with output.working("starting services"):
        _make_registry(root, read)
        deployments: list[str] = []
        for remark in bring_up(plan, lambda: deployments.extend(_register(plan, read))):
            output.remark(remark)
    rows = look(plan)
    table = _table(root, rows)
    table.caption = "\n".join(deployments) or "deployments: as they were"
    output.result({"services": [asdict(row) for row in rows], "deployments": deployments}, table)
    _require_all(rows)


@app.command(epilog="Example: plumbline down")
def down(workspace: Directory = HERE, json: Json = False) -> None:
    """End the services of this workspace.

    Running flow runs get SIGTERM first.
    """
    from plumbline.tasks.operations.services.operate import bring_down
    from plumbline.tasks.params.layers import load_params

    root, output = _root(workspace), Output(json)
    params, _ = load_params(root)
    with output.working("stopping services"):
        left = bring_down(root, params.services.stop_timeout_s)
    note = f" {len(left)} processes had been left behind by a killed supervisor and were ended." if left else ""
    output.result({"workspace": str(root), "left_over": left}, f"Nothing of {root} runs any more.{note}")


@app.command(epilog="Example: plumbline status --credentials")
def status(
    credentials: Annotated[
        bool, typer.Option("--credentials", help="Show the user and password of each server instead, for its pages.")
    ] = False,
    workspace: Directory = HERE,
    json: Json = False,
) -> None:
    """Show each service: state, uptime, health, log.

    Exit code 1 when one that should run does not.
    """
    from plumbline.tasks.operations.services.operate import look
    from plumbline.tasks.params.layers import load_params

    root, output = _root(workspace), Output(json)
    params, _ = load_params(root)
    if credentials:
        return _show_credentials(planned(root, params), output)
    rows = look(planned(root, params))
    table = _table(root, rows)
    table.caption = "The pages ask for credentials: plumbline status --credentials"
    output.result({"ok": all(row.ok for row in rows), "services": [asdict(row) for row in rows]}, table)
    return _require_all(rows)


def _root(workspace: Path) -> Path:
    return workspace_root(workspace, use_services=False)  # these commands change the services


def _show_credentials(plan: Plan, output: Output) -> None:
    from plumbline.tasks.operations.services.credentials import credentials_file, find_credentials

    found, file = find_credentials(plan.folder), credentials_file(plan.folder)
    if not found:
        raise UsageError(f"{file}: expected the services' credentials, found none yet. `plumbline up` makes them.")
    rows = [
        {"server": item.name, "url": item.url, "user": user, "password": password}
        for item in plan.services
        if item.name in found
        for user, _, password in [found[item.name].partition(":")]
    ]
    lines = [f"{row['server']}: {row['url'].removesuffix('/api')}  {row['user']}:{row['password']}" for row in rows]
    lines.append(f"Prefect's page asks for user:password in one field. They are in {file}.")
    output.result({"file": str(file), "credentials": rows}, "\n".join(lines))


def planned(root: Path, params: Params) -> Plan:
    """The services that these params ask for."""
    from plumbline.tasks.operations.services.plan import IntakeEndpoint, plan_services
    from plumbline.tasks.registry.store.client import store_uri

    given = params.registry.tracking_uri
    variable = given[1:] if given is not None and given.startswith("$") else None
    intake = IntakeEndpoint(params.intake.port, "/healthz")
    return plan_services(
        root,
        params.services,
        store_uri=store_uri(root, params.registry),
        store_variable=variable,
        intake=intake,
    )


def _close_to_others(root: Path, params: Params, output: Output) -> None:
    """Put the modes of a workspace right that was made before files were private."""
    mended, left = close_to_others(root, root / params.intake.inbox)
    if mended:
        output.remark(f"{len(mended)} files and folders were open to other users of this machine; now they are not")
    if left:
        output.remark(f"{len(left)} files belong to another user and stay open to others; `plumbline doctor` names one")


def _make_registry(root: Path, params: Params) -> None:
    """Make the registry's own database, which MLflow's server would migrate in place where a kill spoils it."""
    if params.services.mlflow and params.registry.tracking_uri is None:
        from plumbline.tasks.registry.store.client import Store

        Store(root, params.registry)


def _settle_location(root: Path, params: Params) -> None:
    """Let services follow a workspace that was moved or copied: new credentials, and deployments that work here."""
    from plumbline.tasks.operations.announce import workspace_id
    from plumbline.tasks.operations.services.addresses import planned_for
    from plumbline.tasks.operations.services.credentials import credentials_file
    from plumbline.tasks.operations.services.operate import bring_down
    from plumbline.tasks.operations.services.plan import services_folder
    from plumbline.tasks.operations.services.relocation import names_another, rename_in_prefect
    from plumbline.tasks.storage.database.location import record_location

    location = record_location(root)
    if Path(planned_for(root)).resolve() != location.root:
        bring_down(root, params.services.stop_timeout_s)
        credentials_file(services_folder(root)).unlink(missing_ok=True)
    before = [path for path in location.before if path != str(location.root)]
    renamed = {path: str(location.root) for path in before}
    renamed |= {workspace_id(Path(path)): workspace_id(location.root) for path in before}
    if params.services.prefect_database is None and names_another(root, renamed):
        bring_down(root, params.services.stop_timeout_s)
        rename_in_prefect(root, renamed)


def _register(plan: Plan, params: Params) -> list[str]:
    """Register the deployments with the server that is up."""
    os.environ["PREFECT_API_URL"] = plan.prefect_api_url
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from plumbline.flows.deployment.deployments import apply

    with temporary_settings({PREFECT_API_URL: plan.prefect_api_url}):
        return apply(plan.root, params)


def _table(root: Path, rows: Sequence[ServiceStatus]) -> Table:
    """A row a service; health, address and log below one another, so that 80 columns cut none of them."""
    table = Table("", "service", "state", "pid", "up", "health, address, log", box=None)
    for row in rows:
        uptime = "" if row.uptime_s is None else str(timedelta(seconds=round(row.uptime_s)))
        facts = "\n".join((row.health, row.url, str(Path(row.log).relative_to(root))))
        table.add_row("ok" if row.ok else "!!", *map(escape, (row.name, row.state, str(row.pid or ""), uptime, facts)))
    return table


def _require_all(rows: Sequence[ServiceStatus]) -> None:
    ill = [row.name for row in rows if not row.ok]
    if ill:
        raise CheckFailed(f"not running or not healthy: {', '.join(ill)}; start with `plumbline up`, the logs say why.")
