from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import environment

environment.prepare(threads=1)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data and a real small model, beside the repository on some machines only."""
    if not SHARED.is_dir():
        pytest.skip("../shared (real data and model) is not on this machine")
    return SHARED


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One real, temporary Prefect server for the session."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield
