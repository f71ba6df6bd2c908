from __future__ import annotations

from typing import Any

import pytest

from plumbline.data_contracts.errors import VersioningError
from plumbline.tasks.params.registry import RegistryParams
from plumbline.tasks.registry.register_model import refuse_dirty, register_model
from plumbline.tasks.registry.store.client import Store
from plumbline.tasks.registry.store.runs import open_run
from plumbline.tasks.registry.versions.registered import StoredFiles, all_versions, resolve
from plumbline.tasks.storage.versioning.git import commit_git
from plumbline.tasks.storage.versioning.lock import current_hashes
from plumbline.tasks.storage.versioning.workspace import Versions


def stored(world: Any, uri: str) -> StoredFiles:
    store = Store(world.root, world.registry)
    return StoredFiles(store, resolve(store, uri))


def test_passed_rejected_and_passed_again(registered_world: Any) -> None:
    versions = all_versions(Store(registered_world.root, registered_world.registry), "assistant")
    assert [(version.passed, version.aliases) for version in versions] == [
        (True, ("champion",)),
        (False, ()),
        (True, ("candidate",)),
    ]


@pytest.mark.slow
def test_registering_the_same_results_again_gives_the_same_version(world: Any) -> None:
    first, second = world.register(), world.register()
    assert first.model_uri == second.model_uri == "models:/assistant/1"
    assert first.alias_uris == ["models:/assistant@candidate", "models:/assistant@champion"]
    assert [record.reused for record in second.stages] == [True] * 8
    assert "Data and pipelines are up to date" in world.dvc("repro")


def test_the_manifest_is_complete_without_the_workspace(registered_world: Any) -> None:
    manifest = stored(registered_world, "models:/assistant/3").manifest()
    hashes = current_hashes(registered_world.root)
    assert {entry["path"]: entry["md5"] for entry in manifest["objects"].values()} == hashes
    assert manifest["texts"]["dvc.lock"]["text"] == (registered_world.root / "dvc.lock").read_text()
    assert (
        manifest["counts"]["read"]
        == 7
        == sum(manifest["counts"][name] for name in ("accepted", "merged", "quarantined"))
    )
    assert manifest["counts"]["reasons"] == {"empty_response": 1, "broken_json": 1, "leaked_label": 1}
    assert manifest["settings"]["finetune"] == {"dpo": {"beta": 0.1}}
    assert manifest["evaluation"]["win_rate"]["judge"]["low"] == 0.68
    assert manifest["gate"]["reasons"][0]["text"] == "win rate 0.68 ≥ 0.5"
    assert manifest["environment"]["packages"]["mlflow"]
    assert manifest["program"]["source_sha256"]
    assert manifest["flow_run_id"] == "flow-1"
    assert [batch["path"] for batch in manifest["raw_batches"]] == ["data/raw/human_pairs/0123456789abcdef.jsonl"]
    reward = manifest["stages"]["reward"]
    assert reward["deps"]["data/curated"]["md5"] == hashes["data/curated"]
    assert reward["artifact"]["parents"]["data/curated"] == manifest["objects"]["curated"]["digest"]


def test_version_and_run_are_found_by_the_hash_of_a_dataset(registered_world: Any) -> None:
    store = Store(registered_world.root, registered_world.registry)
    version = resolve(store, "models:/assistant/3")
    curated = current_hashes(registered_world.root)["data/curated"]
    assert version.tags["plumbline.md5.curated"] == curated
    (run,) = store.client.search_runs([store.experiment_id()], f"dataset.digest = '{curated}'")
    assert run.info.run_id == version.run_id
    assert run.data.metrics["win_rate.judge.value"] == 0.7
    assert [item.path for item in store.client.list_artifacts(run.info.run_id, "plots")] == ["plots/reliability.png"]


def test_the_card_tells_the_facts(registered_world: Any) -> None:
    card = (stored(registered_world, "models:/assistant/2").folder / "MODEL_CARD.md").read_text()
    for fact in (
        "was **rejected** by the gate",
        "| quarantined: leaked_label | 1 |",
        "| win rate over π_ref (reward model) | 0.7 | [0.68, 0.72] | 2048 |",
        "| data | 7 records read, 3 accepted, 1 for training |",
        "| win_rate.judge | 0.7 | [0.68, 0.72] | 2048 |",
        "| **no** | win rate 0.68 ≥ 0.5 |",
        "| finetune: beta | 0.1 |",
        "uncommitted changes",
        "plumbline restore models:/assistant/VERSION --to DIR",
    ):
        assert fact in card
    titles = [line.removeprefix("## ") for line in card.splitlines() if line.startswith("## ")]
    assert titles[:4] == ["What it is", "Key figures, on the test split", "Intended use", "Limits"]
    assert titles[-2:] == ["Every figure on the test split", "Every setting and figure of training"]
    assert "- The gate said no: win rate 0.68 ≥ 0.5" in card


@pytest.mark.slow
def test_another_registered_name_leaves_the_first_one_untouched(world: Any) -> None:
    world.register()
    before = stored(world, "models:/assistant/1")
    world.registry = RegistryParams(model_name="other")
    assert world.register().model_uri == "models:/other/1"
    assert before.check_manifest().ok
    assert before.folder != stored(world, "models:/other/1").folder


def test_a_dirty_workspace_is_refused_where_params_say_so(world: Any) -> None:
    strict = RegistryParams(on_dirty="refuse")
    refuse_dirty(world.root, strict)
    world.set(seed=5)
    refuse_dirty(world.root, RegistryParams())
    with pytest.raises(VersioningError, match=r"uncommitted changes, and registry.on_dirty is 'refuse'"):
        refuse_dirty(world.root, strict)
    commit_git(world.root, "Seed 5")
    refuse_dirty(world.root, strict)


@pytest.mark.slow
def test_a_batch_that_came_after_its_reading_is_not_named_as_trained_on(world: Any) -> None:
    """Admission takes a batch of the manifest for spent, so that a run which trained without it would lose it."""
    records = world.bring_up_to_date()
    (world.root / "data/raw/human_pairs/fedcba9876543210.jsonl").write_text('{"id": "late"}\n')
    Versions(world.root).track("data/raw")
    with open_run(world.root, world.registry, flow_run_id="flow-1") as run:
        registered = register_model(world.root, world.registry, records, run)
    batches = stored(world, registered.model_uri).manifest()["raw_batches"]
    assert [batch["path"] for batch in batches] == ["data/raw/human_pairs/0123456789abcdef.jsonl"]
