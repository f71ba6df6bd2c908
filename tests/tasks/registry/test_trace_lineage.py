from __future__ import annotations

import io
import shutil
from typing import Any

import pytest
from rich.console import Console

from plumbline.data_contracts.errors import UsageError
from plumbline.tasks.registry.store.client import Store
from plumbline.tasks.registry.trace_lineage import audit_record, render_record, render_trace, trace
from plumbline.tasks.registry.versions.registered import StoredFiles, all_versions, resolve


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
    sent = {"senders": ["app"]} if record == "r3" else {}
    assert origin == {"file": "data/raw/human_pairs/0123456789abcdef.jsonl", "line": int(record[1:]), **sent}
    assert ("sent with token app" in _text(render_record(report))) is bool(sent)
    assert record in _text(render_record(report))


def test_a_merged_record_names_its_survivor_and_reason(registered_world: Any) -> None:
    report = audit_record(registered_world.root, "r4", registered_world.registry)
    merged = [row for row in report.datasets if row["fate"] == "merged"]
    assert {(row["into"], row["reason"]) for row in merged} == {("r1", "near_duplicate")}
    assert len({row["md5"] for row in merged}) == 2, "two curated datasets hold it"


def test_a_record_is_found_by_the_id_that_its_source_gave_it(registered_world: Any) -> None:
    """r4 came as `row-4`, which another file had given to other content; where it was merged it is named r4 alone."""
    report = audit_record(registered_world.root, "row-4", registered_world.registry)
    mine = audit_record(registered_world.root, "r4", registered_world.registry)
    assert report.datasets == mine.datasets and report.versions == mine.versions
    assert {row["fate"] for row in report.datasets} == {"accepted", "merged"}
    assert "accepted (as r4)" in _text(render_record(report))


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


def _text(renderable: Any) -> str:
    stream = io.StringIO()
    Console(width=200, file=stream).print(renderable)
    return stream.getvalue()


def _uses(world: Any, kind: Any, key: str) -> dict[str, str]:
    report = trace(world.root, kind, key, world.registry)
    assert report.problems == []
    return {row["model_uri"].rsplit("/", 1)[1]: row["use"] for row in report.versions}


def test_an_annotator_is_followed_to_every_version_and_use(registered_world: Any) -> None:
    """annotator-0 labelled lines 2, 4 and 6; of these r2 moved to training with version 3, r4 was merged."""
    uses = _uses(registered_world, "annotator", "annotator-0")
    assert uses["1"].startswith("selected with for 1 records")
    assert uses["3"].startswith("trained on for 1 records")
    report = trace(registered_world.root, "annotator", "nobody", registered_world.registry)
    assert (report.found, report.known) == (False, ["annotator-0", "annotator-1"])
    assert "annotator-0" in _text(render_trace(report))


@pytest.mark.parametrize("key", ["helpfulness@1", "ab" * 32, "abababab"])
def test_a_judge_prompt_is_found_by_name_and_by_digest(registered_world: Any, key: str) -> None:
    """It labelled r1, which every version was trained on."""
    uses = _uses(registered_world, "judge_prompt", key)
    assert set(uses) == {"1", "2", "3"}
    assert all(use.startswith("trained on for 1 records") for use in uses.values())


@pytest.mark.parametrize("key", ["0123456789abcdef", "data/raw/human_pairs/0123456789abcdef.jsonl", "0123456"])
def test_a_batch_is_found_by_digest_and_by_path(registered_world: Any, key: str) -> None:
    """Version 1 was trained on r1, selected with r2, evaluated on r3; version 3 trained on both r1 and r2."""
    uses = _uses(registered_world, "batch", key)
    assert uses["1"].startswith("trained on for 1 records; selected with for 1 records; evaluated on for 1 records")
    assert uses["3"].startswith("trained on for 2 records; evaluated on for 1 records")


def test_a_dataset_a_reward_model_and_a_commit_are_found_by_hash(registered_world: Any) -> None:
    store = Store(registered_world.root, registered_world.registry)
    manifests = [StoredFiles(store, version).manifest() for version in all_versions(store, "assistant")]
    first, _, third = manifests
    curated = third["objects"]["curated"]
    assert set(_uses(registered_world, "dataset", curated["md5"])) == {"3"}
    assert set(_uses(registered_world, "dataset", curated["digest"][:12])) == {"3"}
    assert set(_uses(registered_world, "dataset", first["objects"]["validated"]["md5"])) == {"1", "2", "3"}
    assert set(_uses(registered_world, "reward_model", first["objects"]["reward"]["md5"])) == {"1", "2"}
    assert set(_uses(registered_world, "commit", first["git"]["commit"])) == {"1", "2", "3"}
    aliases = {row["model_uri"]: row["aliases"] for row in trace(*_asking(registered_world, curated["md5"])).versions}
    assert aliases == {"models:/assistant/3": ["candidate"]}


def _asking(world: Any, key: str) -> tuple[Any, Any, str, Any]:
    return world.root, "dataset", key, world.registry


def test_what_is_no_hash_is_refused(registered_world: Any) -> None:
    with pytest.raises(UsageError, match="expected a hash"):
        trace(registered_world.root, "dataset", "not a hash", registered_world.registry)


def test_a_token_is_followed_into_every_version(registered_world: Any) -> None:
    """Record r3 alone was sent with it, and is a test record of all three versions."""
    uses = _uses(registered_world, "token", "app")
    assert set(uses) == {"1", "2", "3"}
    assert all("evaluated on" in use for use in uses.values())
    report = trace(registered_world.root, "token", "nobody", registered_world.registry)
    assert (report.found, report.known) == (False, ["app"])


def test_a_lost_or_damaged_index_is_made_again(registered_world: Any) -> None:
    path = registered_world.root / ".plumbline/lineage/versions.db"
    before = _uses(registered_world, "annotator", "annotator-1")
    for content in (None, b"not a database at all, but longer than a header of one would have to be" * 40):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        assert _uses(registered_world, "annotator", "annotator-1") == before


def test_the_index_does_not_answer_for_a_changed_manifest(registered_world: Any) -> None:
    """A manifest that is not what the tag pins is named; the index forgets what it knew of that version."""
    store = Store(registered_world.root, registered_world.registry)
    _uses(registered_world, "annotator", "annotator-1")
    path = StoredFiles(store, resolve(store, "models:/assistant/2")).folder / "manifest.json"
    registered_world_index = registered_world.root / ".plumbline/lineage/versions.db"
    before = path.read_bytes()
    registered_world_index.unlink()
    path.write_bytes(before.replace(b"annotator-1", b"annotator-7"))
    try:
        report = trace(registered_world.root, "annotator", "annotator-1", registered_world.registry)
        forged = trace(registered_world.root, "annotator", "annotator-7", registered_world.registry)
    finally:
        path.write_bytes(before)
    assert {row["model_uri"][-1] for row in report.versions} == {"1", "3"}
    assert "models:/assistant/2" in report.problems[0]
    assert not forged.found
    assert set(_uses(registered_world, "annotator", "annotator-1")) == {"1", "2", "3"}, "read again once it is whole"
