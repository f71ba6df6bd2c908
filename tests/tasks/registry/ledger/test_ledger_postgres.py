"""The ledger on a real Postgres: triggers, the lock between writers, moves. Skipped where Postgres is not installed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from plumbline.data_contracts.errors import OperationsError, RegistryError
from plumbline.tasks.params.operations import OperationsParams
from plumbline.tasks.registry.ledger.ledger import history, move_alias, open_ledger, verify_chain
from plumbline.tasks.storage.database import writing

BIN = Path("/usr/lib/postgresql/15/bin")
SAID: dict[str, Any] = {"action": "promote", "actor": "ada", "reason": "because", "evidence": {}}


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperationsParams]:
    """A server of the module's own on a free port of loopback."""
    as_root = os.geteuid() == 0
    if not (BIN / "initdb").exists() or (as_root and shutil.which("runuser") is None):
        pytest.skip("needs Debian's postgresql 15, and runuser where run as root")
    home = Path(subprocess.run(["mktemp", "-d"], capture_output=True, text=True, check=True).stdout.strip())
    if as_root:
        shutil.chown(home, "postgres")
    before = ["runuser", "-u", "postgres", "--"] if as_root else []
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def run(program: str, *arguments: str) -> None:
        command = [*before, str(BIN / program), "-D", str(home / "data"), *arguments]
        subprocess.run(command, cwd=home, check=True, stdout=subprocess.DEVNULL)

    run("initdb", "-A", "trust", "-U", "plumbline", "-N")
    run("pg_ctl", "-w", "-l", str(home / "log"), "-o", f"-p {port} -k {home} -c listen_addresses=127.0.0.1", "start")
    try:
        yield OperationsParams(database=f"postgresql://plumbline@127.0.0.1:{port}/postgres")
    finally:
        run("pg_ctl", "-m", "immediate", "stop")
        shutil.rmtree(home)


def _three_versions(registry: Any, engine: Engine) -> None:
    client = registry.store.client
    client.create_registered_model(registry.name)
    for number in (1, 2, 3):
        client.create_model_version(registry.name, source=f"{registry.root}/{number}")
    move_alias(engine, registry.store, alias="champion", version="1", expected=None, **SAID)


def test_the_ledger_on_postgres(registry: Any, postgres: OperationsParams) -> None:
    """Two threads promote at once, each with connections of its own: one wins; then nothing can be changed."""
    engine = open_ledger(registry.root, postgres)
    _three_versions(registry, engine)
    lost: list[RegistryError] = []

    def race(number: str) -> None:
        try:
            move_alias(engine, registry.store, alias="champion", version=number, expected="1", **SAID)
        except RegistryError as error:
            lost.append(error)

    threads = [threading.Thread(target=race, args=(number,)) for number in ("2", "3")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lost) == 1
    assert "won, because: because" in str(lost[0])
    assert [entry.previous for entry in history(engine, registry.name)] == [None, "1"]
    assert verify_chain(engine, registry.store) == []
    for verb in (
        "UPDATE promotion_ledger SET actor = 'eve'",
        "DELETE FROM promotion_ledger",
        "TRUNCATE promotion_ledger",
    ):
        with pytest.raises(OperationsError, match="append-only"), writing(engine) as connection:
            connection.execute(text(verb))
