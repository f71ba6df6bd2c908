from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from pydantic import ValidationError
from sqlalchemy import Column, Integer, MetaData, Table, func, insert, select

from plumbline.data_contracts.errors import OperationsError, ParamsError
from plumbline.tasks.params.operations import OperationsParams
from plumbline.tasks.storage.database import database_url, open_database, reading, writing

METADATA = MetaData()
COUNTS = Table("counts", METADATA, Column("value", Integer, primary_key=True))

_OPEN = """
import sys
from pathlib import Path
from sqlalchemy import Column, Integer, MetaData, Table
from plumbline.tasks.storage.database import open_database
from plumbline.tasks.params.operations import OperationsParams
tables = MetaData()
for number in range(20):
    Table(f"table_{number}", tables, Column("value", Integer, primary_key=True))
open_database(Path(sys.argv[1]), OperationsParams(), tables)
"""


def test_a_block_that_fails_leaves_nothing(tmp_path: Path) -> None:
    engine = open_database(tmp_path, OperationsParams(), METADATA)
    with pytest.raises(RuntimeError), writing(engine) as connection:
        connection.execute(insert(COUNTS).values(value=1))
        raise RuntimeError
    with reading(engine) as connection:
        assert connection.execute(select(func.count()).select_from(COUNTS)).scalar() == 0


def test_what_a_writer_reads_does_not_change_before_it_commits(tmp_path: Path) -> None:
    """Eight writers add 'highest + 1' five times each: forty numbers without a collision, 1 to 40."""
    engine = open_database(tmp_path, OperationsParams(), METADATA)

    def count() -> None:
        for _ in range(5):
            with writing(engine) as connection:
                highest = connection.execute(select(func.coalesce(func.max(COUNTS.c.value), 0))).scalar_one()
                connection.execute(insert(COUNTS).values(value=highest + 1))

    writers = [threading.Thread(target=count) for _ in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    with reading(engine) as connection:
        assert sorted(connection.execute(select(COUNTS.c.value)).scalars()) == list(range(1, 41))


def test_processes_that_open_a_new_database_at_once_all_succeed(tmp_path: Path) -> None:
    openers = [subprocess.Popen([sys.executable, "-c", _OPEN, str(tmp_path)]) for _ in range(4)]
    assert [opener.wait(120) for opener in openers] == [0, 0, 0, 0]


def test_a_second_row_of_one_key_is_refused_in_words(tmp_path: Path) -> None:
    engine = open_database(tmp_path, OperationsParams(), METADATA)
    with writing(engine) as connection:
        connection.execute(insert(COUNTS).values(value=1))
    with pytest.raises(OperationsError, match=r"operations\.database"), writing(engine) as connection:
        connection.execute(insert(COUNTS).values(value=1))


def test_a_variable_names_the_database_or_its_absence_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = OperationsParams(database="$PLUMBLINE_TEST_DATABASE")
    with pytest.raises(ParamsError, match="PLUMBLINE_TEST_DATABASE"):
        database_url(tmp_path, params)
    monkeypatch.setenv("PLUMBLINE_TEST_DATABASE", "sqlite:///elsewhere.db")
    assert database_url(tmp_path, params) == "sqlite:///elsewhere.db"


@pytest.mark.parametrize("url", ["postgresql://me:secret@host/db", "mysql://host/db", "operations.db"])
def test_a_password_or_another_kind_of_database_is_refused(url: str) -> None:
    with pytest.raises(ValidationError):
        OperationsParams(database=url)
