"""`services.json`: where the services of a workspace answer, for the commands that come after `plumbline up`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plumbline.data_contracts.artifact import write_bytes
from plumbline.tasks.operations.services.launch import PLAN_FILE
from plumbline.tasks.operations.services.plan import Plan, services_folder

_FILE = "services.json"


@dataclass(frozen=True, slots=True)
class KnownServer:
    """The Prefect server of the services: `own`, started by them, or the one that the user gave to `plumbline up`."""

    url: str
    own: bool


def write_addresses(plan: Plan) -> None:
    """Write them once everything is healthy."""
    addresses = {
        "workspace": str(plan.root),
        "prefect_api_url": plan.prefect_api_url,
        "prefect_is_own": plan.params.prefect,
        "mlflow_url": plan.mlflow_url,
        "services": {service.name: service.url for service in plan.services},
    }
    write_bytes(plan.folder / _FILE, json.dumps(addresses, indent=2).encode() + b"\n")


def forget_addresses(root: Path) -> None:
    """Remove them, before anything is stopped."""
    (services_folder(root) / _FILE).unlink(missing_ok=True)


def known_server(root: Path) -> KnownServer | None:
    """The Prefect server that `plumbline up` noted here; nothing if there is none, or the file is not ours.

    In a workspace that was copied or moved it names the server of another one, or of one that is no more.
    """
    try:
        addresses: Any = json.loads((services_folder(root) / _FILE).read_bytes())
        if Path(addresses.get("workspace") or planned_for(root)).resolve() != root.resolve():
            return None
        return KnownServer(str(addresses["prefect_api_url"]), bool(addresses.get("prefect_is_own", True)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def planned_for(root: Path) -> str:
    """The workspace that services were last started for, as their plan has it; this one if none were."""
    plan = services_folder(root) / PLAN_FILE
    return str(json.loads(plan.read_bytes())["root"]) if plan.is_file() else str(root)
