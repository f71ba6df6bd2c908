"""A deployment's run that a person asks for: start it, wait for it, and end as the command in it would have."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

from plumbline.data_contracts import errors
from plumbline.data_contracts.errors import CheckFailed, OperationsError, PlumblineError, StageError, UsageError
from plumbline.flows.deployment.deployments import REJECTED, deployment_name
from plumbline.tasks.operations.services.plan import WORK_POOL

_LOOK_EVERY_S = 1.0
_RAISED = re.compile(r"encountered an exception: (\w+)")  # what Prefect says of a run that failed


def start_run(client: SyncPrefectClient, name: str, workspace: str, given: Mapping[str, Any]) -> FlowRun:
    """Start a run of a deployment with these parameters. Raises `UsageError`."""
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


def await_end(client: SyncPrefectClient, started: FlowRun) -> FlowRun:
    """The run, once it has ended."""
    while started.state is None or not started.state.is_final():
        time.sleep(_LOOK_EVERY_S)
        started = client.read_flow_run(started.id)
    return started


def require_good_end(name: str, state: State[Any], url: str | None) -> None:
    """Raise what the command itself would have raised: a model that the gate refused is no failed stage."""
    told = f"{name}: the run ended as {state.name}: {state.message or 'its log says why'} {url or ''}".rstrip()
    if state.name == REJECTED:
        raise CheckFailed(told)
    if not state.is_completed():
        raised = _RAISED.search(state.message or "")
        kind = getattr(errors, raised[1], None) if raised else None
        if isinstance(kind, type) and issubclass(kind, PlumblineError):
            raise kind(told)
        raise StageError(told)


def is_idle(client: SyncPrefectClient) -> bool:
    """True if no worker serves the pool."""
    try:
        pool = client.read_work_pool(WORK_POOL)
    except ObjectNotFound as error:
        raise OperationsError(f"the server has no work pool {WORK_POOL}. Run `plumbline deploy`.") from error
    return pool.status is None or pool.status.value != "READY"
