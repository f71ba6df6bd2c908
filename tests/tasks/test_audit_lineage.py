from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from rich.console import Console

from data_contracts.errors import RegistryError
from tasks.audit_lineage import AuditReport, audit_model, audit_record, render_record, render_tree
from tasks.registry.client import Store
from tasks.registry.versions import StoredFiles, resolve
from tasks.versioning.git import head_commit
from tasks.versioning.objects import ObjectStore


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
    return homes[row["where"]]() if row["where"] in homes else None


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


def test_a_changed_byte_in_any_copy_of_any_object_is_found_and_named(registered_world: Any) -> None:
    """Every row of the report in turn, where it has a file of its own (texts lie in the manifest)."""
    uri = "models:/assistant/3"
    tried: dict[Path, str] = {}
    for row in audit(registered_world, uri).objects:
        path = path_of(registered_world, uri, row)
        if path is None or path in tried:
            continue
        tried[path] = row["where"]
        with changed_byte(path):
            report = audit(registered_world, uri)
        assert not report.verified, row
        assert any(problem.startswith(f"{row['name']}:") and row["where"] in problem for problem in report.problems), (
            row
        )
    assert set(tried.values()) == {"cache", "remote", "workspace", "mlflow", "git"}
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
    from tasks.registry.manifest import broken_links

    stages = {
        "curate": {"deps": {}, "outs": {"data/curated": {"md5": "new.dir"}}},
        "reward": {"deps": {"data/curated": {"md5": "old.dir"}}, "outs": {"models/reward": {"md5": "m.dir"}}},
    }
    problems = broken_links({"tracked": {}, "stages": stages})
    assert problems == ["stage reward read data/curated as old.dir, but the version names new.dir."]


def test_the_tree_goes_from_the_version_to_the_batch(registered_world: Any) -> None:
    report = audit(registered_world, "models:/assistant/3")
    lines = [line.strip("│├└─ ") for line in _text(render_tree(report)).splitlines()]
    order = ["ok models:/assistant/3", "ok models/policy", "ok data/curated", "ok data/validated", "ok data/raw "]
    positions = [next(i for i, line in enumerate(lines) if line.startswith(start)) for start in order]
    assert positions == sorted(positions)
    assert "verified" in lines[-1] or "verified" in lines[-2]
    assert orjson.loads(orjson.dumps(report))["verified"] is True


@pytest.mark.parametrize(
    ("record", "fates", "uses"),
    [
        ("r1", {"accepted", "train"}, {"1": "trained on", "2": "trained on", "3": "trained on"}),
        ("r2", {"accepted", "validation", "train"}, {"1": "selected with", "2": "selected with", "3": "trained on"}),
        ("r3", {"accepted", "test"}, dict.fromkeys("123", "evaluated on")),
        ("r4", {"accepted", "merged"}, dict.fromkeys("123", "not used: merged into another record")),
        ("r5", {"quarantined"}, dict.fromkeys("123", "not used: quarantined")),
        ("r6", {"accepted", "quarantined"}, dict.fromkeys("123", "not used: quarantined")),
    ],
)
def test_a_record_is_followed_into_every_dataset_and_version(
    registered_world: Any, record: str, fates: set[str], uses: dict[str, str]
) -> None:
    """r2 moved from validation to training with version 3; the others never moved."""
    report = audit_record(registered_world.root, record, registered_world.registry)
    assert report.found
    assert {row["fate"] for row in report.datasets} == fates
    assert {use["model_uri"].rsplit("/", 1)[1]: use["use"] for use in report.versions} == uses
    (origin,) = report.origins
    assert origin == {"file": "data/raw/human_pairs/0123456789abcdef.jsonl", "line": int(record[1:])}
    assert record in _text(render_record(report))


def test_a_merged_record_names_its_survivor_and_reason(registered_world: Any) -> None:
    report = audit_record(registered_world.root, "r4", registered_world.registry)
    merged = [row for row in report.datasets if row["fate"] == "merged"]
    assert {(row["into"], row["reason"]) for row in merged} == {("r1", "near_duplicate")}
    assert len({row["md5"] for row in merged}) == 2, "two curated datasets hold it"


def test_an_unknown_record_is_reported_as_such(registered_world: Any) -> None:
    report = audit_record(registered_world.root, "nobody", registered_world.registry)
    assert (report.found, report.datasets, report.versions, report.searched) == (False, [], [], 3)
    assert "in none of the 3 datasets" in _text(render_record(report))


def test_the_record_index_is_rebuilt_from_the_remote_alone(registered_world: Any) -> None:
    root = registered_world.root
    shutil.rmtree(root / ".plumbline/lineage")
    shutil.move(root / ".dvc/cache", root / "away")
    try:
        assert audit_record(root, "r2", registered_world.registry).found
    finally:
        shutil.rmtree(root / ".dvc/cache", ignore_errors=True)
        shutil.move(root / "away", root / ".dvc/cache")


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
