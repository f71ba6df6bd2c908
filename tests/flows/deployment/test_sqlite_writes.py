"""Prefect's SQLite under writers at once: it is locked as Prefect begins, and waits for its turn as we do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

# `first` reads and then writes; `second` writes in between.
_WRITERS = """
import asyncio, sys
from sqlalchemy import text
if sys.argv[1] == "ours":
    from plumbline.flows.deployment.sqlite_writes import wait_for_turns
    wait_for_turns()
from prefect.server.database import provide_database_interface

async def writer(db, before, between):
    await asyncio.sleep(before)
    async with db.session_context(begin_transaction=True) as session:
        await session.execute(text("SELECT count(*) FROM told"))
        await asyncio.sleep(between)
        await session.execute(text("INSERT INTO told VALUES (1)"))

async def main():
    db = provide_database_interface()
    async with db.session_context(begin_transaction=True) as session:
        await session.execute(text("CREATE TABLE told (n INTEGER)"))
    await asyncio.gather(writer(db, 0.0, 1.0), writer(db, 0.3, 0.0))
    async with db.session_context() as session:
        print(await session.scalar(text("SELECT count(*) FROM told")))

asyncio.run(main())
"""


@pytest.mark.parametrize(("begun", "code", "said"), [("prefect", 1, "database is locked"), ("ours", 0, "")])
def test_writers_at_once_wait_for_their_turn(tmp_path: Path, begun: str, code: int, said: str) -> None:
    """The first case is why the second exists: once Prefect begins so itself, ours can go."""
    url = f"sqlite+aiosqlite:///{tmp_path / 'prefect.db'}"
    environment = {
        **os.environ,
        "PREFECT_HOME": str(tmp_path),
        "PREFECT_API_DATABASE_CONNECTION_URL": url,
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": url,
        "PREFECT_SERVER_DATABASE_MIGRATE_ON_START": "false",
    }
    done = subprocess.run(
        [sys.executable, "-c", _WRITERS, begun], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    if code == 0:
        assert done.stdout == "2\n"
