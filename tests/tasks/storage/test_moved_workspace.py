"""A workspace that was moved or copied uses its own files alone, and says where it lay before."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from plumbline.data_contracts.errors import RegistryError, UsageError
from plumbline.tasks.operations.promote_model import delete_version, promotion_history, rollback
from plumbline.tasks.params.registry import RegistryParams
from plumbline.tasks.params.whole import Params
from plumbline.tasks.registry.audit_lineage import audit_model
from plumbline.tasks.registry.restore_version import restore_version
from plumbline.tasks.registry.store.client import Store
from plumbline.tasks.registry.store.locations import COLUMNS
from plumbline.tasks.registry.versions.registered import StoredFiles, resolve
from plumbline.tasks.storage.database.location import find_location, record_location
from plumbline.tasks.storage.versioning.objects import ObjectStore
from plumbline.tasks.storage.versioning.workspace import Versions

NAME = "a workspace, 100% süß #1"


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    """Every file of a workspace with its size and time stamp.

    Connections that this process has left are closed first: the last one folds a database's log into it.
    """
    gc.collect()
    return {
        path.relative_to(root).as_posix(): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def copy_of(world: Any, root: Path) -> Any:
    """A copy at rest: the last connection to close folds the log of a database into it."""
    shutil.copytree(world.root, root, symlinks=True)
    with contextlib.closing(sqlite3.connect(root / ".plumbline/operations.db")) as database:
        database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return type(world)(root)


@pytest.fixture
def moved(registered_world: Any, tmp_path: Path) -> Iterator[Any]:
    """The workspace under another name for the while; its own files come back, which connections have open."""
    home, kept = registered_world.root, tmp_path / "kept"
    away = copy_of(registered_world, tmp_path / NAME).root
    home.rename(kept)
    try:
        yield type(registered_world)(away)
    finally:
        shutil.rmtree(home, ignore_errors=True)
        kept.rename(home)


@pytest.mark.slow
def test_an_audit_says_moved_and_verifies(moved: Any, registered_world: Any) -> None:
    before = snapshot(moved.root)
    report = audit_model(moved.root, "models:/assistant@champion", moved.registry)
    assert (report.verified, report.problems) == (True, [])
    assert report.moved_from == str(registered_world.root)
    assert [note for note in report.notes if note.startswith(f"moved: this workspace lay at {registered_world.root}")]
    assert snapshot(moved.root) == before, "an audit writes nothing"
    # whatever wrote in between
    Store(moved.root, moved.registry)
    assert audit_model(moved.root, "models:/assistant/2", moved.registry).moved_from == str(registered_world.root)


@pytest.mark.slow
def test_a_moved_workspace_goes_on(moved: Any, tmp_path: Path) -> None:
    params = Params()
    assert restore_version(moved.root, "models:/assistant/1", tmp_path / "back", moved.registry)["objects"]
    moved.set(seed=7)
    moved.register()
    assert promotion_history(moved.root, params).problems == []
    refused = rollback(moved.root, params, reason="try", to="models:/assistant/3")
    assert not refused.promoted
    assert "signature" not in {gate.name for gate in refused.refused_by}, "its files are found where they are now"
    delete_version(moved.root, params, "assistant/2", reason="not needed")
    assert audit_model(moved.root, "models:/assistant/4", moved.registry).verified
    assert "up to date" in moved.dvc("repro")
    assert "in sync" in moved.dvc("status", "--cloud")


@pytest.mark.slow
def test_a_copy_never_writes_into_nor_reads_its_original(registered_world: Any, tmp_path: Path) -> None:
    original = snapshot(registered_world.root)
    copy = copy_of(registered_world, tmp_path / NAME)
    copy.set(seed=7)
    copy.register()
    Versions(copy.root).push()
    assert snapshot(registered_world.root) == original
    stored = StoredFiles(
        Store(copy.root, copy.registry), resolve(Store(copy.root, copy.registry), "models:/assistant/4")
    )
    assert stored.folder.is_relative_to(copy.root)
    assert ObjectStore(copy.root).remote_url == str(copy.root / ".plumbline/remote")
    assert "in sync" in copy.dvc("status", "--cloud")
    with opened(copy.root) as database:
        assert not list(locations_of(database, registered_world.root))


def test_a_byte_changed_in_the_copy_is_found_there(registered_world: Any, tmp_path: Path) -> None:
    copy = copy_of(registered_world, tmp_path / "copy")
    files = StoredFiles(
        Store(copy.root, copy.registry, read_only=True), resolve(Store(copy.root, copy.registry), "assistant")
    )
    path = files.folder / "MODEL_CARD.md"
    path.write_text(path.read_text() + "!")
    report = audit_model(copy.root, "assistant", copy.registry)
    assert [problem for problem in report.problems if problem.startswith("MODEL_CARD.md")]
    assert audit_model(registered_world.root, "assistant", registered_world.registry).verified


@pytest.mark.slow
def test_an_older_workspace_is_moved_as_well(registered_world: Any, tmp_path: Path) -> None:
    """One without a record of its folder, whose remote is an absolute path."""
    copy = copy_of(registered_world, tmp_path / "copy")
    (copy.root / ".plumbline/location.json").unlink()
    config = copy.root / ".dvc/config"
    config.write_text(
        config.read_text().replace("../.plumbline/remote", str(registered_world.root / ".plumbline/remote"))
    )
    assert find_location(copy.root).moved_from == str(registered_world.root)
    original = snapshot(registered_world.root)
    copy.set(seed=8)
    copy.register()
    assert copy.dvc("push")  # by hand, too
    assert snapshot(registered_world.root) == original
    assert audit_model(copy.root, "models:/assistant/4", copy.registry).verified
    assert "../.plumbline/remote" in (copy.root / ".dvc/config.local").read_text()


def test_a_link_to_a_workspace_is_the_workspace(registered_world: Any, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(registered_world.root)
    assert audit_model(Path(f"{link}/"), "assistant", registered_world.registry).moved_from is None
    assert find_location(link).root == registered_world.root


@pytest.mark.parametrize("place", ["/etc", "../../../outside", "link"])
def test_a_location_that_leads_outside_is_refused(registered_world: Any, tmp_path: Path, place: str) -> None:
    copy = copy_of(registered_world, tmp_path / "copy")
    store = Store(copy.root, copy.registry)
    artifacts = copy.root / ".plumbline/mlartifacts"
    if place == "link":
        (artifacts / "link").symlink_to(tmp_path)
    where = place if place.startswith("/") else f"file://{artifacts}/{place}"
    with opened(copy.root) as database, database:
        database.execute("UPDATE model_versions SET storage_location = ? WHERE version = 1", (where,))
        database.execute("UPDATE experiments SET artifact_location = ? WHERE name = 'plumbline'", (where,))
    with pytest.raises(RegistryError, match="found a place outside of it; nothing was read or written there"):
        audit_model(copy.root, "models:/assistant/1", copy.registry)
    with pytest.raises(RegistryError, match="found a place outside of it"):
        store.experiment_id()


def test_no_location_in_mlflows_tables_is_forgotten(registered_world: Any) -> None:
    """A new MLflow may keep more of them; those that are no locations of artifacts are named here."""
    others = {
        ("runs", "source_name"),
        ("datasets", "dataset_source"),
        ("evaluation_dataset_records", "source"),
        ("mcp_server_versions", "source"),
        ("workspaces", "trace_archival_location"),
    }
    with opened(registered_world.root) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        found = {
            (table, row[1])
            for table in tables
            for row in database.execute(f"PRAGMA table_info({table})")
            if row[1].endswith(("location", "uri", "source", "source_name", "path"))
        }
        assert found - others == set(COLUMNS)
        assert list(locations_of(database, registered_world.root)), "the test would see one"


def test_a_given_store_is_left_as_it_is(tmp_path: Path, migrated_store: Path) -> None:
    given = tmp_path / "shared.db"
    shutil.copy(migrated_store, given)
    (tmp_path / "w").mkdir()
    store = Store(tmp_path / "w", RegistryParams(tracking_uri=f"sqlite:///{given}"))
    assert store.located("file:///anywhere/.plumbline/mlartifacts/x") == "file:///anywhere/.plumbline/mlartifacts/x"


def test_the_folders_before_are_kept_in_order_and_a_return_is_a_move(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    assert record_location(first).moved_from is None
    os.rename(first, second)
    assert find_location(second).moved_from == str(first)
    assert record_location(second).before == (str(first),)
    os.rename(second, first)
    assert record_location(first).before == (str(second),)
    assert find_location(first).moved_from == str(second)


def test_a_folder_whose_name_an_url_would_cut_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"found a question mark"):
        Store(tmp_path / "a?b", RegistryParams())
    assert not list(tmp_path.iterdir())


@contextlib.contextmanager
def opened(root: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(root / ".plumbline/mlflow.db")) as connection:
        yield connection


def locations_of(database: sqlite3.Connection, root: Path) -> Iterator[str]:
    """Every text in the database that names a folder."""
    for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        for row in database.execute(f"SELECT * FROM {table}"):
            yield from (str(cell) for cell in row if isinstance(cell, str) and f"{root}/" in cell)
