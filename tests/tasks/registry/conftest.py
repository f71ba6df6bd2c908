"""A registry of small models for tests of signatures, versions and the promotion ledger: real MLflow, no training."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path

import pytest
from sqlalchemy import Engine

from plumbline.data_contracts.artifact import sha256_file
from plumbline.tasks.params.operations import OperationsParams
from plumbline.tasks.params.registry import RegistryParams
from plumbline.tasks.registry.ledger.ledger import alias_state, history, move_alias, open_ledger
from plumbline.tasks.registry.store.client import Store
from plumbline.tasks.registry.store.runs import open_run
from plumbline.tasks.registry.versions.registered import StoredFiles, Upload, Version, register, resolve


class Registry:
    """Registers small models into one store; `name` keeps tests apart."""

    def __init__(self, root: Path, name: str) -> None:
        self.root = root
        self.params = RegistryParams(model_name=name)
        self.store = Store(root, self.params)
        self.name = name

    def register(self, key: str, *, passed: bool = True, claimed: str | None = None, crowned: bool = True) -> Version:
        folder = self.root / self.name / key
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "weights.bin").write_text(f"weights of {key}")
        digest = claimed or sha256_file(folder / "weights.bin")
        card = {"sha256": hashlib.sha256(b"card").hexdigest(), "bytes": 4}
        manifest = {
            "model": {"key": key},
            "gate": {"passed": passed},
            "objects": {"curated": {"md5": "a" * 32 + ".dir"}},
            "files": {"model/weights.bin": {"sha256": digest}, "MODEL_CARD.md": card},
        }
        with open_run(self.root, self.params) as run:
            version = register(
                self.store,
                key=key,
                run_id=run.run_id,
                experiment_id=run.experiment_id,
                uploads=[Upload(folder, "model")],
                texts={"MODEL_CARD.md": "card"},
                manifest=manifest,
            )
        return crown(self.store, self.ledger, version) if crowned else version

    def stored(self, version: Version) -> StoredFiles:
        """The files of a version as it stands now, tags read again."""
        return StoredFiles(self.store, resolve(self.store, version.uri))

    @property
    def ledger(self) -> Engine:
        return open_ledger(self.root, OperationsParams())


def crown(store: Store, engine: Engine, version: Version) -> Version:
    """Make the first version that passed champion on record, without the gates, which tests of promotion are about."""
    if version.passed and "champion" not in alias_state(history(engine, version.name)):
        named = {"actor": "tests", "reason": "a champion to begin with", "evidence": {}}
        move_alias(engine, store, alias="champion", version=version.number, expected=None, action="assign", **named)
    return resolve(store, version.uri)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, migrated_store: Path) -> Path:
    root = tmp_path_factory.mktemp("versions")
    (root / ".plumbline").mkdir()
    shutil.copy(migrated_store, root / ".plumbline/mlflow.db")
    return root


@pytest.fixture
def registry(root: Path, request: pytest.FixtureRequest) -> Registry:
    return Registry(root, re.sub(r"\W+", "-", request.node.name).strip("-"))
