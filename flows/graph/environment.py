"""The environment every Plumbline process runs in: no telemetry, passive threads, quiet libraries.

`infra/plumbline.env` is this table as a file, for servers and containers; a test holds them equal.
Values already set by the user win.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from plumbline.data_contracts.private_files import keep_private

ENVIRONMENT = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # The temporary server of a run without PREFECT_API_URL takes ten seconds on a free core, more on a busy one.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    # Prefect warns below 30 s; an automation calls a run dead that missed three of them.
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    # On average a run waits half of it; a look costs the server a tenth of a second of CPU or less.
    "PREFECT_WORKER_QUERY_SECONDS": "1",
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # About a minute (0, 4, 8, 16 and 32 s between the tries): a server that is started again is back by then.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "5",
    # A server's runs would be named on stdout, which with --json holds one object.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # Seven more processes of MLflow's server, for features of its UI that are not used here.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # With two threads and a busy neighbour, spinning OpenMP threads made a training step 15 times slower.
    "OMP_WAIT_POLICY": "passive",
    "TOKENIZERS_PARALLELISM": "false",
    "DISABLE_MLFLOW_INTEGRATION": "TRUE",
    "MPLBACKEND": "Agg",
    # Python starts children with the current folder first on their import path: a plumbline.py or random.py there would
    # take the place of ours or Python's. `tasks.pipeline.stage.importable` finds modules of the workspace.
    "PYTHONSAFEPATH": "1",
}


def prepare(threads: int | None = None, root: Path | None = None) -> None:
    """Set the environment of this process and its children; call before torch, prefect or DVC is imported.

    What they write is readable by its owner alone, or also by the group that the workspace at `root` is shared with.
    """
    keep_private(root)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if threads is not None:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ.setdefault(name, str(threads))


def use_services(root: Path) -> None:
    """Point this process at the Prefect server that `plumbline up` started here, unless the user named another.

    Call before prefect is imported. Its credentials are set once it has proved that it is this workspace's own. A
    server that should answer and does not, or is another, is said on stderr, not waited for and not used.
    """
    from plumbline.data_contracts.errors import UsageError
    from plumbline.tasks.access.identity import who_answers
    from plumbline.tasks.operations.services.addresses import known_server
    from plumbline.tasks.operations.services.credentials import PREFECT, find_credentials
    from plumbline.tasks.operations.services.plan import services_folder
    from plumbline.tasks.operations.services.temporary import TEMPORARY

    server, given = known_server(root), plain_url(os.environ.get("PREFECT_API_URL"))
    if given == plain_url(os.environ.get(TEMPORARY)):  # of a call before in this process; no person chose it
        given = ""
    if server is None or (given and given != server.url):
        return
    try:
        secret = find_credentials(services_folder(root)).get(PREFECT) if server.own else None
    except UsageError as error:
        sys.stderr.write(f"plumbline: going on without the services of {root}: {error}\n")
        return
    standing = who_answers(server.url, secret)
    if standing == "own" or (standing == "foreign" and not server.own):
        os.environ["PREFECT_API_URL"] = server.url
        if secret:
            os.environ["PREFECT_API_AUTH_STRING"] = secret
        return
    found = "do not answer" if standing == "silent" else "are not what answers" if secret else "ask for no credentials"
    sys.stderr.write(
        f"plumbline: the services of {root} {found} at {server.url}; going on without them. `plumbline status` says "
        f"why, `plumbline up` starts them.\n"
    )


def plain_url(url: str | None) -> str:
    """An API's URL in the form that we write it; empty for none."""
    return (url or "").rstrip("/").replace("//localhost", "//127.0.0.1")


def quiet_prefect() -> None:
    """Keep Prefect's own log on its server: a person watches the display and reads one message."""
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
    # Of the threads that send events: each event that a server does not take any more would be logged, at the exit too.
    os.environ.setdefault("PREFECT_LOGGING_INTERNAL_LEVEL", "CRITICAL")
