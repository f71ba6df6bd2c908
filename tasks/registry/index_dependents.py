"""Verb: keep the indexes that answer audits at once: records of a dataset, and what every version rests on.

Both are derived: from datasets and from manifests, named or checked by their hashes. Lost, stale or damaged ones are
made again before a question is answered.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from plumbline.data_contracts.errors import PlumblineError
from plumbline.tasks.params.registry import RegistryParams
from plumbline.tasks.registry.lineage.dependents import DependentsIndex
from plumbline.tasks.registry.lineage.records_index import (
    FILES,
    Account,
    account_path,
    build_index,
    index_path,
    read_account,
)
from plumbline.tasks.registry.store.client import Store
from plumbline.tasks.registry.versions.listing import Pinned, pinned_manifest, pinned_versions
from plumbline.tasks.storage.database.caches import cache_folder
from plumbline.tasks.storage.versioning.objects import ObjectStore

INDEXED = {"curated": "data/curated", "validated": "data/validated"}
FOLDER = Path(".plumbline") / "lineage"


def index_datasets(root: Path, objects: Mapping[str, Mapping[str, Any]]) -> dict[str, Account]:
    """Index the records of a version's datasets, so that they are found at once; return their accounts by role."""
    store = ObjectStore(root)
    accounts = {}
    for role in INDEXED:
        if role in objects:
            digest = str(objects[role]["md5"])
            accounts[role] = read_account(dataset_index(root, store, digest).with_suffix(".json"))
    return accounts


def dataset_index(root: Path, objects: ObjectStore, digest: str) -> Path:
    """The index of one dataset's records, made where it (or its account) is missing; the account lies beside it.

    A reader without write access uses what is in the workspace, and makes the rest in a folder of its own.
    """
    for folder in (root / FOLDER, cache_folder(root, FOLDER)):
        path = index_path(folder, digest)
        if path.is_file() and account_path(folder, digest).is_file():
            break
    else:
        with objects.local_files(digest, FILES) as files:
            build_index(files, path)
    return path


def open_index(root: Path, store: Store, params: RegistryParams) -> tuple[DependentsIndex, list[str]]:
    """The index of all versions, brought up to date with the registry; and what could not be read, in words."""
    index = DependentsIndex(cache_folder(root, FOLDER) / "versions.db")
    name = params.model_name
    live = pinned_versions(store, name)
    missing = index.missing(name, {number: pin.manifest_sha256 for number, pin in live.items()})
    if missing:
        index.add(name, _read(store, name, {number: live[number] for number in missing}))
    lost = _account_for_old_ones(root, index, name)
    return index, [*index.problems(name), *lost]


def _read(
    store: Store, name: str, pins: Mapping[str, Pinned]
) -> Iterator[tuple[str, str, bool, Mapping[str, Any] | None, str]]:
    for number, pin in pins.items():
        try:
            manifest = pinned_manifest(store, name, number, pin)
        except PlumblineError as error:
            # Entered under no hash: it is read again the next time, when it may have been restored.
            yield number, "", pin.passed, None, f"{error} What it rests on is not known."
        else:
            yield number, pin.manifest_sha256, pin.passed, manifest, ""


def _account_for_old_ones(root: Path, index: DependentsIndex, name: str) -> list[str]:
    """Count the datasets of versions that were registered before manifests held accounts."""
    missing, problems = index.unaccounted(name), []
    objects = ObjectStore(root) if missing else None
    for digest in missing:
        assert objects is not None
        try:
            path = dataset_index(root, objects, f"{digest}.dir")
        except PlumblineError as error:
            problems.append(f"dataset {digest}: who contributed to it is not known: {error}")
        else:
            index.add_account(digest, read_account(path.with_suffix(".json")))
    return problems
