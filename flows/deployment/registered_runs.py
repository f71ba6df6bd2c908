"""Which flow runs a worker takes: those of the deployments that this workspace registered, as it registered them.

A worker runs as the operator, who owns the signing key. Whoever may write to the server's API could otherwise have it
run anything: another entrypoint, a pull step, a command, another folder, an environment variable that changes imports.
So what a run would be started with is compared with what `flows.deployment.deployments` describes, whatever the
server says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plumbline.flows.deployment.deployments import deployment_name, describe
from plumbline.tasks.operations.announce import workspace_id
from plumbline.tasks.params.whole import Params

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun
    from prefect.client.schemas.responses import DeploymentResponse
    from prefect.workers.process import ProcessJobConfiguration

_ANOTHERS = re.compile(r".+-(?P<workspace>[0-9a-f]{16})")
_MOST_NAMES = 5


def is_anothers(name: str, root: Path) -> bool:
    """True if a deployment has the name of one that another workspace registered."""
    found = _ANOTHERS.fullmatch(name)
    return found is not None and found["workspace"] != workspace_id(root)


def refusal(
    flow_run: FlowRun,
    deployment: DeploymentResponse | None,
    found: ProcessJobConfiguration,
    wanted: ProcessJobConfiguration,
    root: Path,
) -> str | None:
    """Why a run is not taken; None for one as it was registered.

    `found` is what the server's pool, deployment and run amount to, `wanted` the same from our own description.
    """
    if deployment is None:
        return "it belongs to no deployment of this workspace"
    described = {deployment_name(item.name, workspace_id(root)): item for item in describe(Params(), str(root))}
    if deployment.name not in described:
        return f"deployment {deployment.name!r} was not registered by this workspace"
    if deployment.entrypoint != described[deployment.name].entrypoint:
        return f"its entrypoint is {deployment.entrypoint!r}"
    if deployment.pull_steps or deployment.storage_document_id or deployment.path:
        return "it fetches code from elsewhere (pull steps, storage or a path)"
    return _other_start(found, wanted) or _other_parameters(flow_run.parameters, root)


def _other_start(found: ProcessJobConfiguration, wanted: ProcessJobConfiguration) -> str | None:
    if found._command_configured:
        return "it has a command of its own"
    if found.working_dir != wanted.working_dir:
        return f"its working folder is {str(found.working_dir)!r}"
    names = sorted(name for name in {*found.env, *wanted.env} if found.env.get(name) != wanted.env.get(name))
    if names:
        return f"its environment differs in {', '.join(names[:_MOST_NAMES])}"
    return None if found.stream_output == wanted.stream_output else "its output goes elsewhere"


def _other_parameters(parameters: Mapping[str, Any], root: Path) -> str | None:
    if parameters.get("root") != str(root):
        return f"its parameter root is {parameters.get('root')!r}"
    overlays = parameters.get("overlays") or []
    outside = [item for item in overlays if not (root / str(item)).resolve().is_relative_to(root)]
    return f"its params come from outside the workspace ({outside[0]!r})" if outside else None
