from __future__ import annotations

import io
import os
import shutil
import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import orjson
import pytest
from rich.console import Console

from plumbline.data_contracts.errors import RegistryError
from plumbline.tasks.registry.audit_lineage import AuditReport, audit_model, audit_version, render_audit
from plumbline.tasks.registry.store.client import Store
from plumbline.tasks.registry.versions.registered import StoredFiles, resolve
from plumbline.tasks.storage.versioning.git import head_commit
from plumbline.tasks.storage.versioning.objects import ObjectStore


@contextmanager
def changed_byte(path: Path) -> Iterator[None]:
    """One bit of a file flipped, time stamp kept (an empty file gets one byte), and put back afterwards."""
    before, times, mode = path.read_bytes(), path.stat(), path.stat().st_mode
    middle = len(before) // 2
    flipped = bytes([before[middle] ^ 1]) if before else b"!"
    path.chmod(0o644)
    try:
        path.write_bytes(before[:middle] + flipped + before[middle + 1 :])
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        yield
    finally:
        path.write_bytes(before)
        path.chmod(mode)


def audit(world: Any, uri: str) -> AuditReport:
    return audit_model(world.root, uri, world.registry)


def path_of(world: Any, uri: str, row: dict[str, Any]) -> Path | None:
    """Where the copy that a row of the report speaks of lies on disk."""
    digest = row["hash"] + (".dir" if row["kind"] == "listing" else "")
    store = Store(world.root, world.registry)
    homes = {
        "cache": lambda: ObjectStore(world.root).cache_path(digest),
        "remote": lambda: world.root / ".plumbline/remote/files/md5" / digest[:2] / digest[2:],
        "workspace": lambda: world.root / row["name"],
        "mlflow": lambda: StoredFiles(store, resolve(store, uri)).folder / row["name"],
        "git": lambda: world.root / ".git/objects" / digest[:2] / digest[2:],
    }
    if row["where"] not in homes or row["name"].startswith("tag "):
        return None
    return homes[row["where"]]()


def test_an_untouched_version_is_verified_down_to_the_raw_batch(registered_world: Any) -> None:
    report = audit(registered_world, "models:/assistant@candidate")
    assert (report.model_uri, report.verified, report.problems) == ("models:/assistant/3", True, [])
    places = {(row["name"], row["where"]) for row in report.objects}
    batch = "data/raw/human_pairs/0123456789abcdef.jsonl"
    for name in (
        batch,
        "models/policy/model.safetensors",
        "models/base/model.safetensors",
        "models/reward/config.json",
    ):
        assert {(name, "cache"), (name, "remote"), (name, "workspace")} <= places
    mlflow = {"model/model.safetensors", "manifest.json", "MODEL_CARD.md", "evaluation/plots/reliability.png"}
    assert {(name, "mlflow") for name in mlflow} <= places
    assert {("dvc.lock", "manifest"), ("params.yaml", "manifest"), ("workspace commit", "git")} <= places


@pytest.mark.slow
def test_a_changed_byte_in_any_copy_of_any_object_is_found_and_named(
    registered_world: Any, at_full_size: bool, long_seed: int
) -> None:
    """Every row of the report in turn, where it has a file of its own (texts lie in the manifest); or two a place."""
    uri = "models:/assistant/3"
    rows: dict[str, dict[Path, dict[str, Any]]] = defaultdict(dict)
    for row in audit(registered_world, uri).objects:
        path = path_of(registered_world, uri, row)
        if path is not None:
            rows[row["where"]].setdefault(path, row)
    assert set(rows) == {"cache", "remote", "workspace", "mlflow", "git"}
    draw = Random(long_seed)
    for files in rows.values():
        some = list(files.items()) if at_full_size else draw.sample(list(files.items()), min(2, len(files)))
        for path, row in some:
            with changed_byte(path):
                report = audit(registered_world, uri)
            assert not report.verified, row
            named = [problem for problem in report.problems if problem.startswith(f"{row['name']}:")]
            assert any(row["where"] in problem for problem in named), row
    assert audit(registered_world, uri).verified


def test_a_version_whose_workspace_moved_on_is_still_verified(registered_world: Any) -> None:
    report = audit(registered_world, "models:/assistant/1")
    assert report.verified
    in_workspace = {row["name"].split("/")[1] for row in report.objects if row["where"] == "workspace"}
    assert "base" in in_workspace, "unchanged since version 1"
    assert "curated" not in in_workspace, "another version lies there now"


def test_a_lost_cache_is_no_problem_and_a_lost_only_copy_is(registered_world: Any) -> None:
    root = registered_world.root
    shutil.move(root / ".dvc/cache", root / "away")
    try:
        report = audit(registered_world, "assistant")
        assert report.verified
        assert "cache" not in {row["where"] for row in report.objects}
        shutil.move(root / ".plumbline/remote/files", root / "away-too")
        try:
            report = audit(registered_world, "assistant")
        finally:
            shutil.move(root / "away-too", root / ".plumbline/remote/files")
        assert "data/raw/: missing in cache and remote" in " ".join(report.problems)
    finally:
        shutil.rmtree(root / ".dvc/cache", ignore_errors=True)
        shutil.move(root / "away", root / ".dvc/cache")


def test_a_rejected_version_is_registered_and_auditable(registered_world: Any) -> None:
    version = resolve(Store(registered_world.root, registered_world.registry), "models:/assistant/2")
    assert (version.passed, version.aliases) == (False, ())
    assert audit(registered_world, "models:/assistant/2").verified


def test_an_unreadable_manifest_is_a_problem_not_a_crash(registered_world: Any) -> None:
    store = Store(registered_world.root, registered_world.registry)
    path = StoredFiles(store, resolve(store, "assistant")).folder / "manifest.json"
    before = path.read_bytes()
    for content in (b"{ half", b"{}", None):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        report = audit(registered_world, "assistant")
        path.write_bytes(before)
        assert not report.verified
        assert report.problems[0].startswith("manifest.json: ")


def test_mixed_lineage_is_named() -> None:
    from plumbline.tasks.registry.versions.manifest import broken_links

    stages = {
        "curate": {"deps": {}, "outs": {"data/curated": {"md5": "new.dir"}}},
        "reward": {"deps": {"data/curated": {"md5": "old.dir"}}, "outs": {"models/reward": {"md5": "m.dir"}}},
    }
    problems = broken_links({"tracked": {}, "stages": stages})
    assert problems == ["stage reward read data/curated as old.dir, but the version names new.dir."]


def test_the_tree_goes_from_the_version_to_the_batch(registered_world: Any) -> None:
    walk = audit_version(registered_world.root, "models:/assistant/3", registered_world.registry)
    report, lines = walk.report, [line.strip("│├└─ ") for line in _text(render_audit(walk)).splitlines()]
    order = ["ok models:/assistant/3", "ok models/policy", "ok data/curated", "ok data/validated", "ok data/raw "]
    positions = [next(i for i, line in enumerate(lines) if line.startswith(start)) for start in order]
    assert positions == sorted(positions)
    assert "verified" in lines[-1] or "verified" in lines[-2]
    assert orjson.loads(orjson.dumps(report))["verified"] is True


def test_an_unknown_model_says_what_to_do(registered_world: Any) -> None:
    with pytest.raises(RegistryError, match="no version of 'nosuch'"):
        audit(registered_world, "models:/nosuch@champion")


def test_the_manifest_names_the_commit_that_git_has(registered_world: Any) -> None:
    store = Store(registered_world.root, registered_world.registry)
    manifest = StoredFiles(store, resolve(store, "models:/assistant/3")).manifest()
    assert manifest["git"]["commit"] == head_commit(registered_world.root)
    assert "+  pass" not in manifest["git"]["diff"]
    assert "curation: 2" in manifest["git"]["diff"]


def _text(renderable: Any) -> str:
    stream = io.StringIO()
    Console(width=200, file=stream).print(renderable)
    return stream.getvalue()


@pytest.mark.slow
def test_a_byte_anywhere_in_any_object_is_found(registered_world: Any) -> None:
    """Every kind of object, flipped at random places: files of the version, of cache, remote, workspace and git."""
    uri, random = "models:/assistant/3", Random(4)
    rows = [(row, path_of(registered_world, uri, row)) for row in audit(registered_world, uri).objects]
    kinds: dict[tuple[str, str], list[tuple[dict[str, Any], Path]]] = {}
    for row, path in rows:
        if path is not None and path.stat().st_size:
            kinds.setdefault((row["where"], row["kind"]), []).append((row, path))
    assert {"signature", "manifest", "listing", "commit", "data"} <= {kind for _, kind in kinds}
    for choices in kinds.values():
        row, path = random.choice(choices)
        place = random.randrange(path.stat().st_size)
        with flipped(path, place, 1 << random.randrange(8)):
            report = audit(registered_world, uri)
        named = any(problem.startswith(f"{row['name']}:") for problem in report.problems)
        assert report.verified is False and named, (row, place, report.problems)
    assert audit(registered_world, uri).verified


@contextmanager
def flipped(path: Path, place: int, bits: int) -> Iterator[None]:
    before, mode = path.read_bytes(), path.stat().st_mode
    path.chmod(0o644)
    try:
        path.write_bytes(before[:place] + bytes([before[place] ^ bits]) + before[place + 1 :])
        yield
    finally:
        path.write_bytes(before)
        path.chmod(mode)


@pytest.mark.parametrize("column", ["actor", "reason", "version", "at", "evidence", "prev_hash", "hash", "signature"])
def test_a_changed_byte_in_a_ledger_line_is_found_and_named(registered_world: Any, column: str) -> None:
    """The database's triggers are dropped first, as whoever tampers would."""
    with sqlite3.connect(registered_world.root / ".plumbline/operations.db") as connection:
        triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        (value,) = connection.execute(f"SELECT {column} FROM promotion_ledger WHERE seq = 1").fetchone()
        place = len(value) // 2
        changed = value[:place] + chr(ord(value[place]) ^ 1) + value[place + 1 :]
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute(f"UPDATE promotion_ledger SET {column} = ? WHERE seq = 1", (changed,))
    try:
        report = audit(registered_world, "models:/assistant/3")
    finally:
        with sqlite3.connect(registered_world.root / ".plumbline/operations.db") as connection:
            connection.execute(f"UPDATE promotion_ledger SET {column} = ? WHERE seq = 1", (value,))
            for _, sql in triggers:
                connection.execute(sql)
    assert report.verified is False
    assert any(problem.startswith("promotion ledger:") for problem in report.problems)
    assert audit(registered_world, "models:/assistant/3").verified


def test_without_rehashing_only_the_manifest_is_read(registered_world: Any) -> None:
    uri = "models:/assistant/3"
    path = next(
        path
        for row in audit(registered_world, uri).objects
        if row["where"] == "cache" and (path := path_of(registered_world, uri, row)) is not None
    )
    with changed_byte(path):
        quick = audit_model(registered_world.root, uri, registered_world.registry, rehash=False)
    assert (quick.verified, quick.problems, len(quick.objects)) == (None, [], 1)
    assert {node["state"] for node in quick.lineage["nodes"]} == {"unchecked"}


def test_the_graph_reaches_people_batches_contracts_and_approval(registered_world: Any) -> None:
    lineage = audit(registered_world, "models:/assistant/3").lineage
    assert (lineage["schema"], lineage["version"], lineage["verified"]) == ("plumbline.lineage", 1, True)
    nodes = {node["id"]: node for node in lineage["nodes"]}
    assert {
        "model_version",
        "alias",
        "approval",
        "run",
        "gate",
        "evaluation",
        "policy",
        "policy_stage",
        "reference",
        "base",
        "reward_model",
        "dataset",
        "records",
        "batch",
        "contract",
        "quarantine",
        "annotator",
        "token",
        "judge_prompt",
        "params",
        "code",
        "environment",
    } == {node["kind"] for node in nodes.values()}
    assert nodes["annotator:annotator-0"]["facts"]["labels"] == 1, "r2, the only one of its three that was kept"
    assert nodes["records:curated:train"]["label"] == "train: 2"
    assert nodes["rubric:" + "ab" * 32]["label"] == "rubric helpfulness@1"
    edges = {(edge["from"], edge["relation"], edge["to"]) for edge in lineage["edges"]}
    assert ("path:models/policy", "made-from", "method:1-dpo") in edges
    assert ("method:1-dpo", "made-from", "path:models/reference") in edges
    assert ("path:data/raw", "contains", "path:data/raw/human_pairs/0123456789abcdef.jsonl") in edges
    assert all(source in nodes and target in nodes for source, _, target in edges)
    assert nodes["version"]["state"] == "ok"


def test_a_changed_weight_marks_its_node_and_the_version(registered_world: Any) -> None:
    with changed_byte(registered_world.root / "models/reward/config.json"):
        lineage = audit(registered_world, "models:/assistant/3").lineage
    changed = {node["id"] for node in lineage["nodes"] if node["state"] == "changed"}
    assert changed == {"version", "path:models/reward"}


@pytest.mark.slow
def test_figures_and_aliases_that_mlflow_alone_shows_are_findings(registered_world: Any) -> None:
    """A metric raised in the database, and an alias moved in MLflow: each is named, re-hashed or not, and put back."""
    uri, store = "models:/assistant/3", Store(registered_world.root, registered_world.registry)
    run_id = resolve(store, uri).run_id
    change = "UPDATE latest_metrics SET value = ? WHERE key = 'win_rate.judge.value' AND run_uuid = ?"
    with sqlite3.connect(registered_world.root / ".plumbline/mlflow.db") as connection:
        connection.execute(change, (0.99, run_id))
    try:
        full, quick = (
            audit_model(registered_world.root, uri, registered_world.registry, rehash=rehash)
            for rehash in (True, False)
        )
    finally:
        with sqlite3.connect(registered_world.root / ".plumbline/mlflow.db") as connection:
            connection.execute(change, (0.7, run_id))
    words = f"metric win_rate.judge.value of run {run_id}: MLflow shows 0.99, the signed manifest says 0.7."
    assert (full.verified, full.problems) == (quick.verified, quick.problems) == (False, [words])
    assert audit(registered_world, uri).verified

    store.client.set_registered_model_alias("assistant", "champion", "3")
    try:
        named, led = audit(registered_world, uri), audit(registered_world, "models:/assistant/1")
        other = audit(registered_world, "models:/assistant/2")
    finally:
        store.client.set_registered_model_alias("assistant", "champion", "1")
    for report in (named, led):
        assert report.verified is False
        assert "@champion was moved in MLflow itself: it names version 3, the ledger says 1" in report.problems[0]
    assert (other.verified, len(other.notes)) == (True, 1)
