from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from plumbline.data_contracts.artifact import verify_artifact
from plumbline.data_contracts.errors import RegistryError, UsageError, VersioningError
from plumbline.tasks.registry.restore_version import restore_version
from plumbline.tasks.registry.store.client import Store
from plumbline.tasks.registry.versions.registered import StoredFiles, resolve
from plumbline.tasks.storage.versioning.lock import current_hashes
from plumbline.tasks.storage.versioning.objects import ObjectStore
from plumbline.tasks.storage.versioning.workspace import Versions

pytestmark = pytest.mark.slow

UNITS = (
    "data/raw",
    "data/validated",
    "data/curated",
    "models/base",
    "models/reference",
    "models/reward",
    "models/policy",
)


def snapshot(root: Path) -> dict[str, bytes]:
    """Bytes of every dataset, model and text of a workspace."""
    files = [path for unit in UNITS for path in sorted((root / unit).rglob("*")) if path.is_file()]
    files += [root / name for name in ("params.yaml", "dvc.yaml", "dvc.lock")]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def test_a_restored_version_is_the_one_that_was_registered(world: Any, tmp_path: Path) -> None:
    """Registered, then everything changed and the cache lost: the bytes come back from the remote."""
    world.register()
    before, hashes = snapshot(world.root), current_hashes(world.root)
    world.set(curation=2, seed=2, finetune={"dpo": {"beta": 0.9}})
    world.register()
    shutil.rmtree(world.root / ".dvc/cache")
    restored = restore_version(world.root, "models:/assistant/1", tmp_path / "back", world.registry)
    assert snapshot(tmp_path / "back") == before
    assert restored["objects"] == hashes == current_hashes(tmp_path / "back")
    assert restored["model_uri"] == "models:/assistant/1"


def test_a_restored_folder_is_a_clean_workspace(registered_world: Any, tmp_path: Path) -> None:
    restore_version(registered_world.root, "models:/assistant/2", tmp_path / "back", registered_world.registry)
    versions = Versions(tmp_path / "back")
    for stage in ("validate", "curate", "finetune", "gate"):
        versions.require_clean_inputs(stage)
        assert versions.reuse(stage)
    assert verify_artifact(tmp_path / "back/models/policy") == []
    back = type(registered_world)(tmp_path / "back")
    assert "Data and pipelines are up to date" in back.dvc("repro")
    # a remote of its own, with nothing of the source's in it: what it pushes stays out of another's workspace
    assert ObjectStore(tmp_path / "back").remote_url == str(tmp_path / "back/.plumbline/remote")
    versions.push()
    assert "Cache and remote 'storage' are in sync" in back.dvc("status", "--cloud")


@pytest.mark.parametrize("content", ["file", "folder"])
def test_content_is_never_overwritten(registered_world: Any, tmp_path: Path, content: str) -> None:
    target = tmp_path / "back"
    if content == "folder":
        target.mkdir()
    kept = target / "mine.txt" if content == "folder" else target
    kept.write_text("mine")
    with pytest.raises(UsageError, match="expected a new or empty folder"):
        restore_version(registered_world.root, "assistant", target, registered_world.registry)
    assert kept.read_text() == "mine"


def test_an_empty_folder_will_do(registered_world: Any, tmp_path: Path) -> None:
    (tmp_path / "back").mkdir()
    restore_version(registered_world.root, "assistant", tmp_path / "back", registered_world.registry)
    assert (tmp_path / "back/params.yaml").is_file()


def test_a_corrupt_cache_is_made_good_by_the_remote_and_a_lost_object_leaves_nothing(
    world: Any, tmp_path: Path
) -> None:
    world.register()
    objects = ObjectStore(world.root)
    digest = objects.listing(current_hashes(world.root)["models/policy"])["model.safetensors"]
    cached = objects.cache_path(digest)
    cached.chmod(0o644)
    cached.write_bytes(b"corrupt")
    restore_version(world.root, "assistant", tmp_path / "back", world.registry)
    assert (tmp_path / "back/models/policy/model.safetensors").read_bytes() != b"corrupt"
    (world.root / ".plumbline/remote/files/md5" / digest[:2] / digest[2:]).unlink()
    with pytest.raises(VersioningError, match=f"{digest}: no intact copy"):
        restore_version(world.root, "assistant", tmp_path / "again", world.registry)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "workspace"]


def test_a_changed_manifest_is_not_trusted(world: Any, tmp_path: Path) -> None:
    world.register()
    store = Store(world.root, world.registry)
    manifest = StoredFiles(store, resolve(store, "assistant")).folder / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"seed": 1', b'"seed": 2'))
    with pytest.raises(RegistryError, match="nothing was restored"):
        restore_version(world.root, "assistant", tmp_path / "back", world.registry)
    assert not (tmp_path / "back").exists()
