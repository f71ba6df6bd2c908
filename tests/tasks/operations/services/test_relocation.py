"""Prefect's database of a copied workspace names the copy alone."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from plumbline.tasks.operations.services.addresses import known_server
from plumbline.tasks.operations.services.relocation import database_of, names_another, rename_in_prefect

OLD, NEW = "/home/ada/süße modelle", "/srv/copy"
RENAMED = {OLD: NEW, "0123456789abcdef": "fedcba9876543210"}


@pytest.mark.parametrize("ascii_only", [True, False])
def test_deployments_follow_and_what_happened_stays(tmp_path: Path, ascii_only: bool) -> None:
    database_of(tmp_path).parent.mkdir(parents=True)
    told = json.dumps({"root": OLD, "log": f"{OLD}/run.log", "beside": f"{OLD}-2"}, ensure_ascii=ascii_only)
    with closing(sqlite3.connect(database_of(tmp_path))) as connection, connection:
        connection.execute("CREATE TABLE deployment (name VARCHAR, parameters JSON, version INTEGER)")
        connection.execute("CREATE TABLE events (payload JSON)")
        connection.execute("INSERT INTO deployment VALUES (?, ?, 1)", ("retrain-0123456789abcdef", told))
        connection.execute("INSERT INTO events VALUES (?)", (told,))
    assert names_another(tmp_path, RENAMED)
    rename_in_prefect(tmp_path, RENAMED)
    assert not names_another(tmp_path, RENAMED)
    with closing(sqlite3.connect(database_of(tmp_path))) as connection:
        ((name, parameters, _),) = connection.execute("SELECT * FROM deployment").fetchall()
        assert connection.execute("SELECT payload FROM events").fetchone() == (told,)
    assert name == "retrain-fedcba9876543210"
    assert json.loads(parameters) == {"root": NEW, "log": f"{NEW}/run.log", "beside": f"{OLD}-2"}


def test_nothing_is_asked_where_no_server_ever_ran(tmp_path: Path) -> None:
    assert not names_another(tmp_path, RENAMED)


@pytest.mark.parametrize("record", ["services.json", "plan.json"])
def test_a_copy_does_not_use_the_originals_server(tmp_path: Path, record: str) -> None:
    folder = tmp_path / ".plumbline/services"
    folder.mkdir(parents=True)
    for root, found in ((tmp_path, "http://127.0.0.1:4200/api"), (tmp_path / "other", None)):
        addresses = {"prefect_api_url": "http://127.0.0.1:4200/api"}
        if record == "services.json":
            addresses["workspace"] = str(root)
        (folder / "plan.json").write_text(json.dumps({"root": str(root)}))
        (folder / "services.json").write_text(json.dumps(addresses))
        known = known_server(tmp_path)
        assert (known.url if known else None) == found
