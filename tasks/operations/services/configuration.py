"""The files of the supervisor and the launcher: `supervisord.conf` and `plan.json` in the services' folder.

The configuration holds no path but Python's own: the supervisor runs in the services' folder, so that blanks, quotes,
`%` or `;` in the name of a workspace have nothing to break.
"""

from __future__ import annotations

import shlex
import stat
import sys
import tempfile
from hashlib import sha256
from os import getuid
from pathlib import Path

import orjson

from plumbline.data_contracts.artifact import write_bytes
from plumbline.data_contracts.errors import OperationsError
from plumbline.data_contracts.private_files import make_private, workspace_umask
from plumbline.tasks.operations.services.launch import PLAN_FILE
from plumbline.tasks.operations.services.plan import Plan, Service

CONFIGURATION = "supervisord.conf"
SUPERVISOR_LOG = "supervisord.log"
STARTED_AFTER_S = 20  # longer than the imports of a service take: one that fails after them must count as failed
_MAX_SOCKET_BYTES = 90  # of 107 on Linux and 103 on macOS, less what supervisor appends while it binds


def write_configuration(plan: Plan) -> None:
    """Write both files, readable by their owner alone."""
    make_private(plan.folder)
    plan.folder.chmod(0o700)
    commands = {
        service.name: {
            "command": service.command,
            "environment": service.environment,
            "secrets": service.secrets,
            "credentials": service.credentials,
        }
        for service in plan.services
    }
    content = {"root": str(plan.root), "stop_timeout_s": plan.params.stop_timeout_s, "services": commands}
    write_bytes(plan.folder / PLAN_FILE, orjson.dumps(content))
    write_bytes(plan.folder / CONFIGURATION, _render(plan).encode())


def log_path(plan: Plan, name: str) -> Path:
    """The log of a service; older ones are beside it as `.1`, `.2`, …"""
    return plan.folder / f"{name}.log"


def socket_path(folder: Path) -> Path:
    """The supervisor's socket: in the services' folder, or in a private one under /tmp if that path is too long."""
    path = folder / "supervisor.sock"
    if len(str(path).encode()) <= _MAX_SOCKET_BYTES:
        return path
    private = Path(tempfile.gettempdir()) / f"plumbline-{getuid()}-{sha256(str(folder).encode()).hexdigest()[:16]}"
    private.mkdir(mode=0o700, exist_ok=True)
    found = private.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != getuid() or found.st_mode & 0o077:
        raise OperationsError(
            f"{private}: expected a folder that only this user can enter, for the socket of the services; found mode "
            f"{stat.filemode(found.st_mode)} of user {found.st_uid}. Remove it, or use a workspace with a shorter path."
        )
    return private / "supervisor.sock"


def _render(plan: Plan) -> str:
    sections = [_supervisor(plan), *(_program(plan, place, item) for place, item in enumerate(plan.services))]
    return "\n".join(sections)


def _supervisor(plan: Plan) -> str:
    return f"""\
[unix_http_server]
file={socket_path(plan.folder)}
chmod=0600

[supervisord]
identifier={plan.identity}
pidfile=supervisord.pid
childlogdir=.
logfile={SUPERVISOR_LOG}
logfile_maxbytes={plan.params.log_megabytes}MB
logfile_backups={plan.params.log_backups}
umask={workspace_umask(plan.root):03o}

[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
"""


def _program(plan: Plan, place: int, service: Service) -> str:
    # -P: the services' folder, where this runs, is no place to import from
    command = shlex.join(
        [sys.executable, "-P", "-m", "plumbline.tasks.operations.services.launch", service.name, service.digest]
    )
    group = str(service.stop_group).lower()
    return f"""\
[program:{service.name}]
command={command.replace("%", "%%")}
priority={place + 1}
autostart=false
autorestart=true
startsecs={STARTED_AFTER_S}
startretries={plan.params.restarts}
stopsignal=TERM
stopwaitsecs={round(plan.params.stop_timeout_s)}
stopasgroup={group}
killasgroup=true
redirect_stderr=true
stdout_logfile={service.name}.log
stdout_logfile_maxbytes={plan.params.log_megabytes}MB
stdout_logfile_backups={plan.params.log_backups}
"""
