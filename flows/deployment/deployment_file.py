"""The same deployments as files for a cluster: `infra/prefect.yaml` and `infra/automations.yaml`.

Run as a module in the repository, it writes them anew; a test says when they are stale.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from plumbline.data_contracts.artifact import write_bytes
from plumbline.flows.deployment.deployments import (
    DescribedDeployment,
    deployment_name,
    describe,
    job_variables,
    trigger_spec,
    zombie_spec,
)
from plumbline.tasks.operations.services.plan import WORK_POOL
from plumbline.tasks.params.whole import Params

ROOT, WORKSPACE = "{{ $PLUMBLINE_ROOT }}", "{{ $PLUMBLINE_WORKSPACE }}"
_HEADER = """\
# The deployments of flows/deployment/deployments.py for a cluster.
# `python -m plumbline.flows.deployment.deployment_file` writes this file.
#   export PLUMBLINE_ROOT=/srv/plumbline    # the workspace, at the same path wherever flows run and feedback comes in
#   export PLUMBLINE_WORKSPACE=$(printf %s "$(realpath "$PLUMBLINE_ROOT")" | sha256sum | cut -c1-16)
#   prefect work-pool create --type process plumbline    # or of another type
#   prefect --no-prompt deploy --all --prefect-file infra/prefect.yaml
#   prefect automation create --from-file infra/automations.yaml    # once a server
"""
_AUTOMATIONS = (
    "# Marks runs without heartbeats as crashed; once a server.\n"
    "# `python -m plumbline.flows.deployment.deployment_file` writes it.\n"
)


def render() -> dict[str, str]:
    """The files by their paths in the repository."""
    deployments = [_entry(described) for described in describe(Params(), ROOT)]
    document = {"name": "plumbline", "build": [], "push": [], "pull": [], "deployments": deployments}
    return {
        "infra/prefect.yaml": _HEADER + _dumped(document),
        "infra/automations.yaml": _AUTOMATIONS + _dumped({"automations": [zombie_spec()]}),
    }


def _entry(described: DescribedDeployment) -> dict[str, Any]:
    schedule = {"cron": described.cron, "timezone": described.timezone}
    return {
        "name": deployment_name(described.name, WORKSPACE),
        "description": described.description,
        "entrypoint": described.entrypoint,
        "tags": ["plumbline", f"workspace:{WORKSPACE}"],
        "parameters": dict(described.parameters),
        "concurrency_limit": {"limit": 1, "collision_strategy": described.collision},
        "work_pool": {"name": WORK_POOL, "job_variables": job_variables(ROOT)},
        "schedules": [schedule] if described.cron else [],
        "triggers": [trigger_spec(trigger, described, ROOT, WORKSPACE) for trigger in described.triggers],
    }


def _dumped(document: dict[str, Any]) -> str:
    yaml = YAML()
    yaml.width = 120
    buffer = io.StringIO()
    yaml.dump(document, buffer)
    return buffer.getvalue()


if __name__ == "__main__":
    for name, text in render().items():
        write_bytes(Path(name), text.encode())
