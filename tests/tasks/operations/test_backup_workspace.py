"""A backup brings a lost machine's workspace back whole; half a backup brings nothing."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson
import pytest

from plumbline.data_contracts.errors import CheckFailed, PlumblineError, UsageError
from plumbline.tasks.data.ingest_feedback import fixed_raw, ingest_feedback, version_raw
from plumbline.tasks.operations import backup_workspace as backup
from plumbline.tasks.operations.backup_workspace import backup_workspace
from plumbline.tasks.operations.promote_model import Override, promote, promotion_history, rollback
from plumbline.tasks.operations.restore_workspace import restore_workspace
from plumbline.tasks.params.whole import Params
from plumbline.tasks.registry.audit_lineage import audit_model
from plumbline.tasks.registry.restore_version import restore_version
from plumbline.tasks.registry.signing.keys import default_key_path
from plumbline.tasks.storage.versioning.git import head_commit
from plumbline.tasks.storage.versioning.workspace import Versions

pytestmark = pytest.mark.slow

PARAMS = Params()


@pytest.fixture
def mine(registered_world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A copy of the workspace on a machine that will be lost, the folder with the keys included."""
    root = tmp_path / "machine/workspace"
    shutil.copytree(registered_world.root, root, symlinks=True)
    config = tmp_path / "machine/config"
    (config / "plumbline").mkdir(parents=True)
    shutil.copy(default_key_path(), config / "plumbline/signing.key")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(config))
    return type(registered_world)(root)


def lose(machine: Path, monkeypatch: pytest.MonkeyPatch, config: Path) -> None:
    shutil.rmtree(machine)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(config))


def test_a_lost_machine_costs_nothing(mine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (mine.root / "note.txt").write_text("mine, and not committed")
    (mine.root / ".plumbline/users.key").write_text("a secret")
    (mine.root / "inbox/human_pairs").mkdir(parents=True)
    (mine.root / "inbox/human_pairs/late.jsonl").write_text('{"id": "late"}\n')
    commit, hashes = head_commit(mine.root), mine.bring_up_to_date()
    history = promotion_history(mine.root, PARAMS).entries
    report = backup_workspace(mine.root, tmp_path / "backup", PARAMS, keys=True)
    assert report.left_out == []
    lose(tmp_path / "machine", monkeypatch, tmp_path / "new-config")

    again = type(mine)(tmp_path / "elsewhere" / "again")
    restore_workspace(tmp_path / "backup", again.root, keys=True)
    found = audit_model(again.root, "assistant", again.registry)
    assert (found.verified, found.problems) == (True, [])
    assert promotion_history(again.root, PARAMS).entries == history
    assert promotion_history(again.root, PARAMS).problems == []
    assert restore_version(again.root, "models:/assistant/1", tmp_path / "back", again.registry)["objects"]
    records = again.bring_up_to_date()
    assert all(record.reused for record in records)
    assert [record.artifact.digest for record in records] == [record.artifact.digest for record in hashes]
    assert "up to date" in again.dvc("repro")
    assert again.register().model_uri == "models:/assistant/3", "the results are registered already"
    assert head_commit(again.root) == commit
    assert (again.root / "note.txt").read_text() == "mine, and not committed"
    assert (again.root / "inbox/human_pairs/late.jsonl").is_file()
    assert (again.root / ".plumbline/users.key").read_text() == "a secret"
    assert oct(default_key_path().stat().st_mode)[-3:] == "600"


def test_what_waits_for_a_run_to_end_is_saved_wherever_it_stands(
    mine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run ends while files are copied: the batch that waited moves into the store before its turn comes."""
    late = tmp_path / "late.jsonl"
    late.write_text('{"id": "late", "prompt": "p?", "chosen": "yes", "rejected": "no"}\n')
    monkeypatch.setattr(
        "plumbline.tasks.data.ingest_feedback._bring_in_after", lambda root: None
    )  # left to the thread below
    with fixed_raw(mine.root):
        (batch,) = ingest_feedback(mine.root, "human_pairs", [late])
    assert not batch.path.exists()
    save, mover = backup._save_file, threading.Thread(target=version_raw, args=(mine.root,))

    def save_late(path: Path, to: Path) -> None:
        if not mover.ident:
            mover.start()
            mover.join(1)
        save(path, to)

    monkeypatch.setattr(backup, "_save_file", save_late)
    backup_workspace(mine.root, tmp_path / "backup", PARAMS)
    mover.join()
    restore_workspace(tmp_path / "backup", tmp_path / "again")
    version_raw(tmp_path / "again")
    assert (tmp_path / "again" / batch.path.relative_to(mine.root)).read_bytes() == late.read_bytes()
    assert Versions(tmp_path / "again").changed_tracked("data/raw") == []


def test_objects_that_were_never_pushed_are_saved(mine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The remote is elsewhere, or nothing is pushed (registry.push): the cache alone has them."""
    shutil.rmtree(mine.root / ".plumbline/remote/files")
    assert backup_workspace(mine.root, tmp_path / "backup", PARAMS).objects > 0
    assert list((tmp_path / "backup/objects/runs").rglob("*")), "what DVC ran before"
    lose(tmp_path / "machine", monkeypatch, tmp_path / "new-config")
    restore_workspace(tmp_path / "backup", tmp_path / "again")
    assert audit_model(tmp_path / "again", "assistant", mine.registry).verified


def test_keys_are_saved_by_choice_alone(mine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (mine.root / ".plumbline/users.key").write_text("a secret")
    secret = default_key_path().read_bytes()
    backup_workspace(mine.root, tmp_path / "backup", PARAMS)
    assert not [path for path in (tmp_path / "backup").rglob("*") if path.is_file() and secret in path.read_bytes()]
    assert not list((tmp_path / "backup").rglob("users.key"))
    lose(tmp_path / "machine", monkeypatch, tmp_path / "new-config")
    with pytest.raises(UsageError, match="made without `--keys`"):
        restore_workspace(tmp_path / "backup", tmp_path / "again", keys=True)
    restore_workspace(tmp_path / "backup", tmp_path / "again")
    assert audit_model(tmp_path / "again", "assistant", mine.registry).verified, "the public key is enough"


@pytest.mark.parametrize("damage", ["no manifest", "missing", "changed", "leads out"])
def test_half_a_backup_is_refused_and_leaves_nothing(registered_world: Any, tmp_path: Path, damage: str) -> None:
    backup = tmp_path / "backup"
    backup_workspace(registered_world.root, backup, PARAMS)
    database, manifest = backup / "workspace/.plumbline/mlflow.db", backup / "backup.json"
    if damage == "no manifest":
        manifest.unlink()
    elif damage == "missing":
        database.unlink()
    elif damage == "changed":
        database.write_bytes(database.read_bytes()[:-1] + b"!")
    else:
        content = orjson.loads(manifest.read_bytes())
        content["files"]["../outside"] = {"sha256": "0" * 64, "bytes": 0}
        manifest.write_bytes(orjson.dumps(content))
    with pytest.raises(PlumblineError, match="Nothing was restored") as refused:
        restore_workspace(backup, tmp_path / "again")
    assert isinstance(refused.value, UsageError if damage == "no manifest" else CheckFailed)
    assert sorted(tmp_path.iterdir()) == [backup]


def test_a_backup_beside_promotions_holds_a_whole_ledger(mine: Any, tmp_path: Path) -> None:
    stop, done = threading.Event(), threading.Event()
    moved: list[bool] = []
    given = Override("ann", "one that was champion may come back without gates")
    assert promote(mine.root, PARAMS, "models:/assistant/3", reason="to and fro", override=given).promoted

    def promote_on() -> None:
        while not stop.is_set():
            for version in ("1", "3"):
                done_so = rollback(mine.root, PARAMS, reason="back and forth", to=f"models:/assistant/{version}")
                moved.append(done_so.promoted)
                done.set()

    worker = threading.Thread(target=promote_on)
    worker.start()
    try:
        assert done.wait(60)
        backup_workspace(mine.root, tmp_path / "backup", PARAMS)
    finally:
        stop.set()
        worker.join()
    assert all(moved) and len(moved) % 2 == 0, "it went on until it was told to stop"
    restore_workspace(tmp_path / "backup", tmp_path / "again")
    found = promotion_history(tmp_path / "again", PARAMS)
    assert (found.problems, found.moved_outside) == ([], {})
    for name in ("mlflow.db", "operations.db"):
        with closing(sqlite3.connect(tmp_path / "again/.plumbline" / name)) as database:
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_backup_goes_into_a_new_folder_outside(registered_world: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="outside of the workspace"):
        backup_workspace(registered_world.root, registered_world.root / "backup", PARAMS)
    (tmp_path / "kept").write_text("mine")
    with pytest.raises(UsageError, match="found content"):
        backup_workspace(registered_world.root, tmp_path, PARAMS)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
