"""The deployments: one literal description, for `plumbline deploy` and for a file.

A deployment and its automations carry the workspace's id in their names, so that workspaces may share a server.
`apply` compares before it writes: a second call changes nothing, and what a person paused stays paused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from plumbline.data_contracts.errors import OperationsError
from plumbline.flows.deployment.servers import Server, connected
from plumbline.flows.graph.environment import ENVIRONMENT
from plumbline.tasks.operations.announce import EVENTS, workspace_id
from plumbline.tasks.operations.services.plan import WORK_POOL
from plumbline.tasks.params.whole import Params

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.responses import DeploymentResponse
    from prefect.events.schemas.automations import AutomationCore

NAMES = ("retrain", "retrain-on-fresh", "poll-freshness", "monitor", "promote")
FLOW_NAMES = NAMES
ZOMBIES = "plumbline: a run without signs of life has crashed"
REJECTED = "Rejected"
"""Name of the Completed state of a run whose model the gate turned down."""

SILENCE_S = 3 * int(ENVIRONMENT["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"])


@dataclass(frozen=True, slots=True)
class Trigger:
    """An event of the workspace that starts a run, `delay_s` after it came."""

    event: str
    delay_s: float = 0.0


@dataclass(frozen=True, slots=True)
class DescribedDeployment:
    """A deployment: one run at a time; a second one waits (ENQUEUE) or is dropped (CANCEL_NEW)."""

    name: str
    entrypoint: str
    description: str
    collision: Literal["ENQUEUE", "CANCEL_NEW"]
    parameters: Mapping[str, Any]
    cron: str | None = None
    timezone: str = "UTC"
    triggers: Sequence[Trigger] = field(default=())


def describe(params: Params, root: str) -> list[DescribedDeployment]:
    """The deployments of a workspace."""
    when = params.schedule
    scheduled = partial(DescribedDeployment, timezone=when.timezone)
    return [
        scheduled(
            "retrain",
            "plumbline.flows.retrain:retrain",
            "The whole loop, on its schedule or when a person asks.",
            "ENQUEUE",
            {"root": root, "wait_s": when.busy_wait_h * 3600},
            cron=when.retrain_cron,
        ),
        DescribedDeployment(
            "retrain-on-fresh",
            "plumbline.flows.fresh:retrain_on_fresh",
            "Retrains when fresh feedback or a finding of the monitor makes it due.",
            "ENQUEUE",
            {"root": root},
            # A batch is looked at when its quiet time is over; asking earlier would be refused.
            triggers=(Trigger(EVENTS["batch"], params.trigger.debounce_s), Trigger(EVENTS["finding"])),
        ),
        scheduled(
            "poll-freshness",
            "plumbline.flows.fresh:poll_freshness",
            "Sends events that are left over and starts what a lost event should have started.",
            "CANCEL_NEW",
            {"root": root},
            cron=when.poll_cron,
        ),
        scheduled(
            "monitor",
            "plumbline.flows.monitor:monitor",
            "Looks at recent traffic and labels; a finding asks for a retraining run.",
            "CANCEL_NEW",
            {"root": root},
            cron=when.monitor_cron,
        ),
        DescribedDeployment(
            "promote",
            "plumbline.flows.promote:promote",
            "Holds the candidate to the gates and moves the champion.",
            "ENQUEUE",
            {"root": root},
        ),
    ]


def deployment_name(name: str, workspace: str) -> str:
    """The name on the server; the full one there is `NAME/NAME-WORKSPACE`."""
    return f"{name}-{workspace}"


def trigger_spec(trigger: Trigger, described: DescribedDeployment, root: str, workspace: str) -> dict[str, Any]:
    """An event trigger in the words of prefect.yaml; the parameters are filled from the event."""
    return {
        "type": "event",
        "name": f"plumbline: {trigger.event} starts {deployment_name(described.name, workspace)}",
        "description": described.description,
        "posture": "Reactive",
        "expect": [trigger.event],
        "match": {"prefect.resource.id": f"plumbline.workspace.{workspace}"},
        "threshold": 1,
        "within": 0,
        "schedule_after": trigger.delay_s,
        "parameters": {
            "root": root,
            "key": {"__prefect_kind": "jinja", "template": "{{ event.payload.key }}"},
            "event_id": {"__prefect_kind": "jinja", "template": "{{ event.id }}"},
        },
    }


def zombie_spec(silence_s: float = SILENCE_S) -> dict[str, Any]:
    """The automation that marks our runs as crashed after `silence_s` seconds without a heartbeat or an end.

    A worker sees its own runs die at once; this is for a machine that died, and for runs outside a worker.
    """
    heartbeat, ends = (
        "prefect.flow-run.heartbeat",
        ("Completed", "Failed", "Cancelled", "Crashed", NOT_STARTED_NAME, REJECTED),
    )
    return {
        "name": ZOMBIES,
        "description": "A flow run that sends heartbeats and stops without ending is dead.",
        "enabled": True,
        "trigger": {
            "type": "event",
            "posture": "Proactive",
            "after": [heartbeat],
            "expect": [heartbeat, *(f"prefect.flow-run.{end}" for end in ends)],
            "match": {"prefect.resource.id": "prefect.flow-run.*"},
            "match_related": {"prefect.resource.role": "flow", "prefect.resource.name": [*FLOW_NAMES, "compare"]},
            "for_each": ["prefect.resource.id"],
            "threshold": 1,
            "within": silence_s,
        },
        "actions": [
            {
                "type": "change-flow-run-state",
                "state": "CRASHED",
                "message": f"no heartbeat for {silence_s:g} seconds: its process, or its machine, is gone.",
            }
        ],
    }


NOT_STARTED_NAME = "NotStarted"  # flows.fresh.NOT_STARTED, whose module loads Prefect; a test holds them equal


def apply(root: Path, params: Params) -> list[str]:
    """Make pool, deployments and automations as described; return a line for each thing that was made or changed.

    Raises `UsageError` if no server answers or it is of another version, `OperationsError` where it refuses.
    """
    from httpx import HTTPError
    from prefect.exceptions import PrefectException

    with connected(root, params) as (client, _):
        try:
            return list(_apply(client, root.resolve(), params))
        except (PrefectException, HTTPError) as error:
            raise OperationsError(
                f"the Prefect server refused a deployment: {' '.join(str(error).split())[:400]} What was made before "
                f"stands; run `plumbline deploy` again."
            ) from error


def _apply(client: SyncPrefectClient, root: Path, params: Params) -> Iterator[str]:
    from prefect.events.schemas.automations import AutomationCore
    from prefect.events.schemas.deployment_triggers import DeploymentEventTrigger

    workspace = workspace_id(root)
    yield from _settle_pool(client)
    for described in describe(params, str(root)):
        deployment_id, change = _settle_deployment(client, described, root, workspace)
        yield from change
        for wanted in described.triggers:
            trigger = DeploymentEventTrigger.model_validate(trigger_spec(wanted, described, str(root), workspace))
            trigger.set_deployment_id(deployment_id)
            yield from settle_automation(client, trigger.as_automation())
    yield from settle_automation(client, AutomationCore.model_validate(zombie_spec()))


def _settle_pool(client: SyncPrefectClient) -> Iterator[str]:
    """A process pool if there is none; a pool of another kind, as a cluster has, stays as it is."""
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
    from prefect.workers.process import ProcessWorker

    try:
        client.read_work_pool(WORK_POOL)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        try:
            client.create_work_pool(WorkPoolCreate(name=WORK_POOL, type="process", base_job_template=template))
        except ObjectAlreadyExists:
            return  # another `deploy`, or a worker that started, was quicker
        yield f"made work pool {WORK_POOL}"


def job_variables(root: str) -> dict[str, Any]:
    """The environment and folder of a run's process: that of every Plumbline process, and the workspace."""
    return {"env": dict(ENVIRONMENT), "working_dir": root}


def _settle_deployment(
    client: SyncPrefectClient, described: DescribedDeployment, root: Path, workspace: str
) -> tuple[Any, list[str]]:
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.exceptions import ObjectNotFound
    from prefect.flows import Flow, load_flow_from_entrypoint
    from prefect.utilities.callables import parameter_schema

    flow: Flow[..., Any] = load_flow_from_entrypoint(described.entrypoint, use_placeholder_flow=False)
    name = f"{flow.name}/{deployment_name(described.name, workspace)}"
    wanted = _wanted(described, root, workspace, parameter_schema(flow).model_dump(exclude_unset=True))
    try:
        found = client.read_deployment_by_name(name)
    except ObjectNotFound:
        found = None
    if found is not None and _as_found(found) == wanted:
        return found.id, []
    timed = {name: wanted.pop(name) for name in ("cron", "timezone")}
    active = found is None or all(schedule.active for schedule in found.schedules)
    schedules = (
        [DeploymentScheduleCreate.model_validate({"schedule": timed, "active": active})] if described.cron else []
    )
    flow_id = client.create_flow_from_name(flow.name)
    made = client.create_deployment(
        flow_id,
        deployment_name(described.name, workspace),
        schedules=schedules,
        concurrency_limit=1,
        paused=found.paused if found is not None else False,
        enforce_parameter_schema=True,
        pull_steps=[],
        **wanted,
    )
    return made, [f"{'made' if found is None else 'changed'} deployment {name}"]


def _wanted(described: DescribedDeployment, root: Path, workspace: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a deployment as they should be, under the names of Prefect's client."""
    return {
        "entrypoint": described.entrypoint,
        "description": described.description,
        "parameters": dict(described.parameters),
        "parameter_openapi_schema": dict(schema),
        "tags": ["plumbline", f"workspace:{workspace}"],
        "work_pool_name": WORK_POOL,
        "job_variables": job_variables(str(root)),
        "concurrency_options": {"collision_strategy": described.collision},
        "cron": described.cron,
        "timezone": described.timezone if described.cron else None,
    }


def _as_found(found: DeploymentResponse) -> dict[str, Any]:
    """The same of a deployment on the server."""
    schedule: Any = found.schedules[0].schedule if len(found.schedules) == 1 else None
    options = found.concurrency_options
    limit = found.global_concurrency_limit
    same = ("entrypoint", "description", "parameters", "parameter_openapi_schema", "work_pool_name", "job_variables")
    return {
        **{name: getattr(found, name) for name in same},
        "tags": sorted(found.tags),
        "concurrency_options": {"collision_strategy": options.collision_strategy.value} if options and limit else None,
        "cron": getattr(schedule, "cron", None if not found.schedules else "another kind of schedule"),
        "timezone": getattr(schedule, "timezone", None),
    }


def settle_automation(client: SyncPrefectClient, wanted: AutomationCore) -> Iterator[str]:
    """Make or correct the automation of a name; one that a person disabled stays disabled, and copies go."""
    found = sorted(client.read_automations_by_name(wanted.name), key=lambda automation: str(automation.id))
    if not found:
        client.create_automation(wanted)
        found = sorted(client.read_automations_by_name(wanted.name), key=lambda automation: str(automation.id))
        yield f"made automation {wanted.name}"
    for copy in found[1:]:  # two `deploy` at once: both keep the one with the lowest id
        client.delete_automation(copy.id)
    same = ("description", "trigger", "actions")
    if any(getattr(found[0], name) != getattr(wanted, name) for name in same):
        told = wanted.model_dump(exclude={"owner_resource"}) | {"enabled": found[0].enabled}  # the owner cannot change
        client.update_automation(found[0].id, type(wanted).model_validate(told))
        yield f"changed automation {wanted.name}"


def deployed(root: Path, params: Params) -> tuple[Server, list[dict[str, Any]]]:
    """The server, and each deployment of the workspace as it stands there."""
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
        "url": page_of("deployment", found.id),
    }


def page_of(kind: str, of: Any) -> str | None:
    """Address of a page of Prefect's UI; None without one."""
    from prefect.utilities.urls import url_for

    return url_for(kind, obj_id=of)
