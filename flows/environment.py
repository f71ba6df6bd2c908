"""The environment every Plumbline process runs in: no telemetry, passive threads, quiet libraries.

`infra/plumbline.env` is this table as a file, for servers and containers; a test holds them equal.
Values already set by the user win.
"""

from __future__ import annotations

import os

ENVIRONMENT = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # The temporary server of a run without PREFECT_API_URL takes ten seconds on a free core, more on a busy one.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # With two threads and a busy neighbour, spinning OpenMP threads made a training step 15 times slower.
    "OMP_WAIT_POLICY": "passive",
    "TOKENIZERS_PARALLELISM": "false",
    "DISABLE_MLFLOW_INTEGRATION": "TRUE",
    "MPLBACKEND": "Agg",
}


def prepare(threads: int | None = None) -> None:
    """Set the environment of this process and its children; call before torch or prefect is imported."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if threads is not None:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ.setdefault(name, str(threads))
