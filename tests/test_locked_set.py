"""The locked versions are installed, portable, and really work together."""

from __future__ import annotations

import asyncio
import importlib.metadata
import re
import time
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LOCK = (ROOT / "requirements.lock").read_text().splitlines()
PINS = [line for line in LOCK if line and not line.startswith("#")]


def test_the_lock_names_versions_and_nothing_else() -> None:
    """No index host, no path, no URL, no local build suffix such as `+cpu`."""
    wrong = [line for line in PINS if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*( ; [^@/]*)?", line)]
    assert wrong == []


def test_every_dependency_is_locked_at_the_installed_version() -> None:
    pairs = (line.split(" ; ")[0].split("==") for line in PINS)
    locked = {canonicalize_name(name): version for name, version in pairs}
    names = {canonicalize_name(Requirement(text).name) for text in importlib.metadata.requires("plumbline") or []}
    names.remove("plumbline")  # its own extras, which `all` and `dev` name
    installed = {name: importlib.metadata.version(name).split("+")[0] for name in names}
    assert {name: locked.get(name) for name in names} == installed


def test_an_ephemeral_flow_starts(prefect_server: None) -> None:
    """With fastapi >= 0.155 the server that Prefect starts for itself does not come up."""
    from prefect import flow

    @flow
    def double(value: int) -> int:
        return 2 * value

    assert double(21) == 42


def test_a_cron_deployment_yields_scheduled_runs(server: str) -> None:
    """With SQLAlchemy 2.1 the server looks healthy but schedules nothing."""
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
    from prefect.client.schemas.schedules import CronSchedule
    from prefect.settings import PREFECT_API_URL, temporary_settings

    @flow
    def nightly() -> None:
        pass

    async def scheduled_states() -> set[str]:
        async with get_client() as client:
            deployment = await client.create_deployment(
                flow_id=await client.create_flow(nightly),
                name="nightly",
                schedules=[DeploymentScheduleCreate(schedule=CronSchedule(cron="0 3 * * *"), active=True)],
            )
            wanted = DeploymentFilter(id=DeploymentFilterId(any_=[deployment]))
            until = time.monotonic() + 90
            while time.monotonic() < until:
                runs = await client.read_flow_runs(deployment_filter=wanted)
                if runs:
                    return {run.state.name for run in runs if run.state}
                await asyncio.sleep(0.5)
        return set()

    with temporary_settings({PREFECT_API_URL: server}):
        assert asyncio.run(scheduled_states()) == {"Scheduled"}
