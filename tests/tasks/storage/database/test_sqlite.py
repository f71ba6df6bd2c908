"""Databases are read where they may not be written, and nothing is left beside them."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, insert, select

from plumbline.data_contracts.errors import OperationsError
from plumbline.tasks.params.operations import OperationsParams
from plumbline.tasks.storage.database import open_database, read_database, reading, writing
from plumbline.tasks.storage.database.sqlite import connect_for_reading, copy_database

METADATA, LARGER = MetaData(), MetaData()
COUNTS = Table("counts", METADATA, Column("value", Integer, primary_key=True))
Table("counts", LARGER, Column("value", Integer, primary_key=True), Column("note", Integer))
Table("others", LARGER, Column("value", Integer, primary_key=True))
DATABASE = ".plumbline/operations.db"

_READ = """
import sys
from contextlib import closing
from pathlib import Path
from plumbline.tasks.storage.database.sqlite import connect_for_reading
with closing(connect_for_reading(Path(sys.argv[1]))) as connection:
    print(connection.execute("SELECT sum(value) FROM counts").fetchone()[0])
"""


def fill(root: Path, *values: int) -> None:
    engine = open_database(root, OperationsParams(), METADATA)
    with writing(engine) as connection:
        connection.execute(insert(COUNTS), [{"value": value} for value in values])
    engine.dispose()


def read_as_another(path: Path) -> subprocess.CompletedProcess[str]:
    """Read as a user who may read all and write nothing of ours."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv, to act as another user")
    rights = ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]
    user = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", *rights]
    command = [*user, "env", "TMPDIR=/tmp", sys.executable, "-c", _READ, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_database_with_a_log_is_read_by_another_user_at_rest_and_in_use(tmp_path: Path) -> None:
    """1 + 2 lie in the file itself; 4 in the log of a writer that is at work, or was killed."""
    fill(tmp_path, 1, 2)
    path = tmp_path / DATABASE
    before = sorted(path.parent.iterdir())
    done = read_as_another(path)
    assert done.stdout == "3\n", done.stderr
    assert sorted(path.parent.iterdir()) == before
    with closing(sqlite3.connect(path)) as writer:
        writer.execute("INSERT INTO counts VALUES (4)")
        writer.commit()
        assert read_as_another(path).stdout == "7\n"
        killed = tmp_path / "killed"
        shutil.copytree(path.parent, killed / ".plumbline")
    (killed / f"{DATABASE}-shm").unlink()
    assert read_as_another(killed / DATABASE).stdout == "7\n", "the log counts where its -shm is gone"


def test_its_owner_reads_it_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    fill(tmp_path, 1, 2)
    path = tmp_path / DATABASE
    before = [(file, file.stat().st_mtime_ns, file.read_bytes()) for file in sorted(path.parent.iterdir())]
    with closing(connect_for_reading(path)) as first, closing(connect_for_reading(path)) as second:
        for connection in (first, second):
            assert connection.execute("SELECT sum(value) FROM counts").fetchone() == (3,)
    after = [(file, file.stat().st_mtime_ns, file.read_bytes()) for file in sorted(path.parent.iterdir())]
    assert after == before


def test_a_reader_cannot_write(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    with closing(connect_for_reading(tmp_path / DATABASE)) as connection, pytest.raises(sqlite3.OperationalError):
        connection.execute("INSERT INTO counts VALUES (2)")
    with (
        pytest.raises(OperationsError, match="readonly"),
        writing(read_database(tmp_path, OperationsParams(), METADATA)) as connection,
    ):
        connection.execute(insert(COUNTS).values(value=2))


def test_what_is_not_there_yet_reads_as_empty_and_is_not_made(tmp_path: Path) -> None:
    with reading(read_database(tmp_path, OperationsParams(), METADATA)) as connection:
        assert connection.execute(select(COUNTS)).all() == []
    assert list(tmp_path.iterdir()) == []


def test_a_database_of_an_earlier_program_is_completed_in_a_copy(tmp_path: Path) -> None:
    fill(tmp_path, 5)
    before = (tmp_path / DATABASE).read_bytes()
    engine = read_database(tmp_path, OperationsParams(), LARGER)
    with reading(engine) as connection:
        assert connection.execute(select(LARGER.tables["counts"])).all() == [(5, None)]
        assert connection.execute(select(LARGER.tables["others"])).all() == []
    assert (tmp_path / DATABASE).read_bytes() == before


def test_a_file_that_may_not_be_read_is_named_with_its_permission(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    fill(tmp_path, 1)
    (tmp_path / DATABASE).chmod(0)
    with pytest.raises(OperationsError, match=r"may not read .*operations.db \(mode 0000"):
        connect_for_reading(tmp_path / DATABASE)


def test_a_copy_of_a_database_in_use_is_whole(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    with closing(sqlite3.connect(tmp_path / DATABASE)) as writer:
        writer.execute("INSERT INTO counts VALUES (4)")
        writer.commit()
        copy_database(tmp_path / DATABASE, tmp_path / "copy.db")
    with closing(sqlite3.connect(tmp_path / "copy.db")) as copy:
        assert copy.execute("SELECT sum(value) FROM counts").fetchone() == (5,)
        assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
