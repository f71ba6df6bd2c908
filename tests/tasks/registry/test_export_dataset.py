from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from plumbline.data_contracts.errors import UsageError, VersioningError
from plumbline.tasks.params.feedback_limits import LIMITS
from plumbline.tasks.registry.export_dataset import export_dataset
from plumbline.tasks.storage.versioning.lock import current_hashes
from plumbline.tasks.storage.versioning.objects import ObjectStore

pytestmark = pytest.mark.slow


def ids(path: Path) -> list[str]:
    return [orjson.loads(line)["id"] for line in path.read_bytes().splitlines()]


def test_a_set_is_the_present_one_or_of_a_hash_or_of_a_version(registered_world: Any, tmp_path: Path) -> None:
    """Version 1 has r2 in validation, the present set (version 3's) in training; all have r1, r2 and r3."""
    root, params, out = registered_world.root, registered_world.registry, tmp_path / "out.jsonl"
    present = current_hashes(root)["data/curated"]
    done = export_dataset(root, params, out, "trl", LIMITS, splits=("train",))
    assert (ids(out), done.dataset, done.file.records) == (["r1", "r2"], present, 2)
    export_dataset(root, params, out, "trl", LIMITS, splits=("train",), model="models:/assistant/1")
    assert ids(out) == ["r1"]
    export_dataset(root, params, out, "trl", LIMITS, dataset=present[:9])
    assert ids(out) == ["r1", "r2", "r3"]


def test_what_cannot_be_written_is_named(registered_world: Any, tmp_path: Path) -> None:
    root, params, out = registered_world.root, registered_world.registry, tmp_path / "out.jsonl"
    for choice, message in (
        ({"dataset": "abc"}, "7 or more digits of the hash of one curated set, found 0 such sets. There are: "),
        ({"dataset": "abcdefg", "model": "assistant"}, "expected one of --dataset and --model"),
        ({"splits": ("validation",)}, "expected records in validation.jsonl of set .* found none"),
    ):
        with pytest.raises(UsageError, match=message):
            export_dataset(root, params, out, "trl", LIMITS, **choice)
    with pytest.raises(UsageError, match=r"expected records in unpaired.jsonl of set"):
        export_dataset(root, params, out, "trl-unpaired", LIMITS)
    assert not out.exists()


def test_a_changed_copy_in_the_cache_is_not_exported(world: Any, tmp_path: Path) -> None:
    world.bring_up_to_date()
    objects = ObjectStore(world.root)
    cached = objects.cache_path(objects.listing(current_hashes(world.root)["data/curated"])["train.jsonl"])
    cached.chmod(0o644)
    cached.write_bytes(cached.read_bytes().replace(b"yes", b"yea"))
    with pytest.raises(VersioningError, match=r"the cached copy of train.jsonl was changed"):
        export_dataset(world.root, world.registry, tmp_path / "out.jsonl", "trl", LIMITS)
