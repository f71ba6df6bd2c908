"""Become one service: the supervisor runs this module with NAME and DIGEST in the services' folder.

1. Read the service's command and environment from `plan.json`, which holds no secret.
2. End what outlived this service's last process: it may hold the port, and no start would succeed.
3. Put secrets in place, the user's from the variables that hold them, the workspace's from its private file; they never
   stand in another file or a command line.
4. Let SIGINT through again: a shell's background job ignores it, children inherit that, and a Prefect worker that
   is to end sends SIGINT to itself and would wait without end.
5. Go to the workspace and replace this process by the service, so that the supervisor has its pid.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from plumbline.data_contracts.private_files import keep_private
from plumbline.tasks.operations.services.credentials import find_credentials
from plumbline.tasks.operations.services.processes import MARK, SERVICE_MARK, end, marked, service_of

PLAN_FILE = "plan.json"


def main(name: str) -> None:
    """Read the plan in the working directory and run the service in place of this process."""
    plan = json.loads(Path(PLAN_FILE).read_bytes())
    service = plan["services"][name]
    _end_what_is_left(name, plan["stop_timeout_s"])
    environment = {**os.environ, **service["environment"], SERVICE_MARK: name}
    environment.update({target: os.environ[source] for target, source in service["secrets"].items()})
    wanted = service.get("credentials", {})  # a plan that an earlier version wrote has none
    credentials = find_credentials(Path.cwd()) if wanted else {}
    environment.update({target: credentials[name] for target, name in wanted.items()})
    environment.pop("PREFECT_PROFILE", None)  # a profile of the user's may be missing in the services' own home
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    keep_private(Path(plan["root"]))  # the supervisor gives its children a umask of its own
    os.chdir(plan["root"])
    os.execvpe(service["command"][0], service["command"], environment)


def _end_what_is_left(name: str, grace_s: float) -> None:
    folder = Path(os.environ[MARK])
    end([process for process in marked(folder) if service_of(process) == name], grace_s)


if __name__ == "__main__":
    main(sys.argv[1])
