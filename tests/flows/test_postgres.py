"""A real Postgres beneath the Prefect server that `up` starts, MLflow and the operations database."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import mkdtemp

import httpx
import pytest
from sqlalchemy import Column, Integer, MetaData, String, Table, UniqueConstraint, insert, select

from plumbline.data_contracts.errors import OperationsError, ParamsError
from plumbline.flows.cli.services import planned
from plumbline.tasks.access.requests import basic
from plumbline.tasks.operations.services import operate
from plumbline.tasks.operations.services.credentials import find_credentials
from plumbline.tasks.operations.services.processes import marked
from plumbline.tasks.params.layers import load_params
from plumbline.tasks.registry.store.client import Store
from plumbline.tasks.storage.database import open_database, reading, writing
from tests.flows.cli.test_services import Services, _free_ports, _workspace

pytestmark = pytest.mark.slow

BIN = Path("/usr/lib/postgresql/15/bin")


@dataclass(frozen=True)
class Postgres:
    """A cluster of the session's own on loopback, with a password."""

    port: int
    password: str

    def url(self, driver: str, database: str) -> str:
        return f"{driver}://plumbline:{self.password}@127.0.0.1:{self.port}/{database}"


def _as_postgres(*command: object) -> list[str]:
    return [*(["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []), *map(str, command)]


def _run(*command: object) -> None:
    done = subprocess.run(_as_postgres(*command), capture_output=True, text=True, cwd="/", check=False)
    assert done.returncode == 0, done.stderr + done.stdout


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    if not (BIN / "initdb").exists():
        pytest.skip(f"no Postgres 15 in {BIN} (Debian's package postgresql)")
    if os.getuid() == 0 and shutil.which("runuser") is None:
        pytest.skip("initdb refuses root, and there is no runuser to become postgres")
    folder = Path(mkdtemp(prefix="plumbline-pg-", dir="/tmp"))  # pytest's folders are closed to other users
    made = Postgres(_free_ports(1)[0], secrets.token_hex(12))
    password = folder / "password"
    password.write_text(made.password)
    if os.getuid() == 0:
        shutil.chown(folder, "postgres")
        shutil.chown(password, "postgres")
    data, options = folder / "data", f"-p {made.port} -c listen_addresses=127.0.0.1 -k {folder}"
    try:
        _run(BIN / "initdb", "-D", data, "-U", "plumbline", "-A", "scram-sha-256", "--pwfile", password, "-N")
        _run(BIN / "pg_ctl", "-D", data, "-w", "-o", options, "-l", folder / "log", "start")
        for name in ("prefect", "mlflow", "operations"):
            subprocess.run(
                [BIN / "createdb", "-h", "127.0.0.1", "-p", str(made.port), "-U", "plumbline", name],
                env={**os.environ, "PGPASSWORD": made.password},
                check=True,
            )
        yield made
        _run(BIN / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def on_postgres(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres) -> Iterator[Services]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_API_URL", "")
        patch.setenv("TEST_PREFECT_DATABASE", postgres.url("postgresql+asyncpg", "prefect"))
        patch.setenv("TEST_MLFLOW", postgres.url("postgresql", "mlflow"))
        patch.setenv("TEST_OPERATIONS", postgres.url("postgresql", "operations"))
        made = _workspace(
            tmp_path_factory.mktemp("on_postgres"),
            "services.prefect_database=$TEST_PREFECT_DATABASE",
            "registry.tracking_uri=$TEST_MLFLOW",
            "operations.database=$TEST_OPERATIONS",
            "services.worker=false",
        )
        try:
            made.up()
            yield made
        finally:
            operate.bring_down(made.root, 20)
            assert marked(made.plan.folder) == []


def test_server_and_registry_are_healthy_on_postgres(on_postgres: Services, postgres: Postgres) -> None:
    assert on_postgres.well()
    assert not (on_postgres.root / ".plumbline/prefect/prefect.db").exists()
    assert not (on_postgres.root / ".plumbline/mlflow.db").exists()


def test_no_password_stands_in_a_file(on_postgres: Services, postgres: Postgres) -> None:
    files = [path for path in on_postgres.plan.folder.rglob("*") if path.is_file()]
    assert len(files) >= 5
    assert not [path for path in files if postgres.password.encode() in path.read_bytes()]


def test_a_cron_deployment_yields_scheduled_runs(on_postgres: Services) -> None:
    headers = basic(find_credentials(on_postgres.plan.folder)["prefect"])
    with httpx.Client(base_url=on_postgres.plan.prefect_api_url, headers=headers, timeout=30, trust_env=False) as api:

        def post(path: str, body: dict[str, object]) -> object:
            return api.post(path, json=body).raise_for_status().json()

        flow = post("/flows/", {"name": "nightly"})
        assert isinstance(flow, dict)
        schedule = {"schedule": {"cron": "0 3 * * *"}, "active": True}
        deployment = post("/deployments/", {"name": "nightly", "flow_id": flow["id"], "schedules": [schedule]})
        assert isinstance(deployment, dict)
        wanted = {"flow_runs": {"deployment_id": {"any_": [deployment["id"]]}}}
        until = time.monotonic() + 120
        while not (runs := post("/flow_runs/filter", wanted)):
            assert time.monotonic() < until
            time.sleep(0.5)
    assert isinstance(runs, list)
    assert {run["state"]["type"] for run in runs} == {"SCHEDULED"}
    assert all(datetime.fromisoformat(run["expected_start_time"]) > datetime.now(UTC) for run in runs)


def test_the_registry_and_the_operations_database_work_on_postgres(on_postgres: Services) -> None:
    params, _ = load_params(on_postgres.root)
    store = Store(on_postgres.root, params.registry)
    store.client.create_registered_model("assistant")
    assert [model.name for model in store.client.search_registered_models()] == ["assistant"]

    tables = MetaData()
    table = Table(
        "once", tables, Column("id", Integer, primary_key=True), Column("key", String(40)), UniqueConstraint("key")
    )
    engine = open_database(on_postgres.root, params.operations, tables)
    with writing(engine) as connection:
        connection.execute(insert(table).values(key="a"))
    with pytest.raises(OperationsError, match="once_key_key"), writing(engine) as connection:
        connection.execute(insert(table).values(key="b"))
        connection.execute(insert(table).values(key="a"))
    with reading(engine) as connection:
        assert connection.execute(select(table.c.key)).scalars().all() == ["a"]
    engine.dispose()


def test_a_url_without_asyncpg_is_refused(on_postgres: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    params, _ = load_params(on_postgres.root)
    monkeypatch.setenv("TEST_PREFECT_DATABASE", "postgresql://127.0.0.1/prefect")
    with pytest.raises(ParamsError, match="found one that begins with postgresql://"):
        planned(on_postgres.root, params)
