"""`services.json`: where the services of a workspace answer, for the commands that come after `plumbline up`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data_contracts.artifact import write_bytes
from tasks.services.plan import Plan, services_folder

_FILE = "services.json"
_ANSWER_S = 2.0


def write_addresses(plan: Plan) -> None:
    """Write them once everything is healthy."""
    addresses = {
        "prefect_api_url": plan.prefect_api_url,
        "mlflow_url": plan.mlflow_url,
        "services": {service.name: service.url for service in plan.services},
    }
    write_bytes(plan.folder / _FILE, json.dumps(addresses, indent=2).encode() + b"\n")


def forget_addresses(root: Path) -> None:
    """Remove them, before anything is stopped."""
    (services_folder(root) / _FILE).unlink(missing_ok=True)


def prefect_api_url(root: Path) -> str | None:
    """The Prefect server that `plumbline up` started here; nothing where there is none, or the file is not ours."""
    try:
        addresses: Any = json.loads((services_folder(root) / _FILE).read_bytes())
        return str(addresses["prefect_api_url"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def answers(api_url: str) -> bool:
    """Whether a server answers there, in milliseconds on loopback."""
    import urllib.error
    import urllib.request

    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{api_url}/health", timeout=_ANSWER_S):
            return True
    except (urllib.error.URLError, OSError, ValueError):
        return False
