"""Verb: join what DVC, git and the stages know into a manifest, and register the model in MLflow."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ruamel.yaml import YAML

from plumbline import data_contracts
from plumbline.data_contracts.artifact import Artifact, sha256_file
from plumbline.data_contracts.errors import VersioningError
from plumbline.tasks.data.validate_feedback import RAW
from plumbline.tasks.params.operations import OperationsParams
from plumbline.tasks.params.registry import RegistryParams
from plumbline.tasks.params.section import PARAMS_FILE, RESOLVED_FILE
from plumbline.tasks.pipeline.stage import StageRecord
from plumbline.tasks.registry.index_dependents import INDEXED, index_datasets
from plumbline.tasks.registry.ledger.ledger import open_ledger, settle
from plumbline.tasks.registry.store.client import Store
from plumbline.tasks.registry.store.runs import Run
from plumbline.tasks.registry.versions.card import render_card
from plumbline.tasks.registry.versions.manifest import all_paths, build_manifest, published_files
from plumbline.tasks.registry.versions.registered import Upload, Version, register, results_key, settled_version
from plumbline.tasks.storage.versioning.git import head_commit, is_dirty, program_identity, workspace_state
from plumbline.tasks.storage.versioning.lock import current_hashes, read_lock, read_tracked
from plumbline.tasks.storage.versioning.objects import ObjectStore
from plumbline.tasks.storage.versioning.workspace import Versions

PUBLISHED = {"finetune": "model", "evaluate": "evaluation", "gate": "gate"}
TEXTS = (PARAMS_FILE, RESOLVED_FILE, "dvc.yaml", "dvc.lock", ".gitignore", ".dvcignore")
CARD = "MODEL_CARD.md"
SUITES = Path(data_contracts.__file__).parent / "suites"


@dataclass(frozen=True, slots=True)
class Registered:
    """A registered version: its URI for good, the URIs of its aliases, the gate's verdict, the stages behind it."""

    model_uri: str
    alias_uris: list[str]
    passed: bool
    stages: list[StageRecord]

    @property
    def facts(self) -> dict[str, Mapping[str, Any]]:
        """The facts that each stage records of its output, by stage."""
        return {record.name: record.artifact.facts for record in self.stages}

    @property
    def metrics(self) -> dict[str, Any]:
        """The figures of the evaluation, in its own nesting."""
        return cast(dict[str, Any], self.facts["evaluate"]["metrics"])

    @property
    def reasons(self) -> list[dict[str, Any]]:
        """The checks of the gate, each with `passed` and `text`."""
        return cast(list[dict[str, Any]], self.facts["gate"]["reasons"])


def refuse_early(root: Path, params: RegistryParams, operations: OperationsParams) -> None:
    """Stop before any work that could not be registered after it.

    The reasons are: no remote to push to, a ledger that is not whole, and, if params ask for a committed workspace,
    uncommitted changes. Raises `VersioningError`, `SignatureError`, `RegistryError`.
    """
    settle_ledger(root, params, operations)
    if params.push:
        Versions(root).push_tracked(RAW)  # asking alone tells little: DVC takes silence for an empty remote


def settle_ledger(root: Path, params: RegistryParams, operations: OperationsParams) -> None:
    """The part of `refuse_early` that asks no remote: it finishes what a crash left of the ledger."""
    refuse_dirty(root, params)
    settle(open_ledger(root, operations), Store(root, params))


def refuse_dirty(root: Path, params: RegistryParams) -> None:
    """Stop when params ask for a committed workspace and it is not. Raises `VersioningError`."""
    if params.on_dirty == "refuse" and (is_dirty(root) or head_commit(root) is None):
        raise VersioningError(
            f"{root}: uncommitted changes, and registry.on_dirty is 'refuse'. Commit them (`git status` lists them), "
            f"or set registry.on_dirty=record to keep the diff in the manifest."
        )


def register_model(
    root: Path,
    params: RegistryParams,
    records: Sequence[StageRecord],
    run: Run,
    *,
    operations: OperationsParams | None = None,
    trigger: Mapping[str, Any] | None = None,
) -> Registered:
    """Register and sign the policy of these stages, passed or rejected; the same results keep their version.

    `operations` is where the promotion ledger is kept, the workspace's own SQLite by default; `trigger` is what
    started the run, None for a person at the command line.
    """
    refuse_dirty(root, params)
    if params.push:
        Versions(root).push()
    artifacts = {record.name: record.artifact for record in records}
    key = results_key([artifacts[stage].digest for stage in PUBLISHED])
    manifest, texts = _describe(root, params.model_name, key, records, run, trigger)
    run.log_datasets(*_inputs(manifest))
    run.log_files(artifacts["evaluate"].path / "plots", "plots")
    run.log_outcome(manifest["evaluation"], manifest["settings"], {"plumbline.key": key})
    version = register(
        run.store,
        key=key,
        run_id=run.run_id,
        experiment_id=run.experiment_id,
        uploads=[Upload(artifacts[stage].path, name) for stage, name in PUBLISHED.items()],
        texts=texts,
        manifest=manifest,
        ledger=open_ledger(root, operations or OperationsParams()),
    )
    return _registered(version, records)


def registered_before(
    root: Path, params: RegistryParams, records: Sequence[StageRecord], operations: OperationsParams
) -> Registered | None:
    """The version that these results have already, signed, sealed and candidate if it passed; None if any is left.

    As `register_model`, it refuses a workspace that is to be committed, and pushes.
    """
    refuse_dirty(root, params)
    if params.push:
        Versions(root).push()
    artifacts = {record.name: record.artifact for record in records}
    version = settled_version(
        Store(root, params),
        results_key([artifacts[stage].digest for stage in PUBLISHED]),
        open_ledger(root, operations),
    )
    return None if version is None else _registered(version, records)


def _registered(version: Version, records: Sequence[StageRecord]) -> Registered:
    aliases = [f"models:/{version.name}@{alias}" for alias in version.aliases]
    return Registered(version.uri, aliases, version.passed, list(records))


def _describe(
    root: Path,
    model_name: str,
    key: str,
    records: Sequence[StageRecord],
    run: Run,
    trigger: Mapping[str, Any] | None,
) -> tuple[dict[str, Any], dict[str, str]]:
    """The manifest and the further texts of a version; the card is written from the manifest, and named in it."""
    lineage = _lineage(root)
    artifacts: dict[str, Artifact] = {record.name: record.artifact for record in records}
    files = {
        name: entry
        for stage, folder in PUBLISHED.items()
        for name, entry in published_files(artifacts[stage], folder).items()
    }
    manifest = build_manifest(
        model_name=model_name,
        key=key,
        records=records,
        lineage=lineage,
        files=files,
        settings=YAML(typ="safe").load(lineage["texts"][RESOLVED_FILE]),
        flow_run_id=run.flow_run_id,
        mlflow_run_id=run.run_id,
        trigger=trigger,
    )
    card = render_card(manifest)
    data = card.encode()
    manifest["files"][CARD] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    return manifest, {CARD: card}


def suites() -> dict[str, dict[str, Any]]:
    """The contracts of records in force: name -> version, and SHA-256 of the suite's file."""
    found = {}
    for file in sorted(SUITES.glob("*.v*.json")):
        name, version = file.stem.rsplit(".v", 1)
        found[name] = {"version": int(version), "sha256": sha256_file(file)}
    return found


def _lineage(root: Path) -> dict[str, Any]:
    tracked, objects, hashes = read_tracked(root), ObjectStore(root), current_hashes(root)
    lock = read_lock(root)
    read = {path: dep["md5"] for stage in lock.values() for path, dep in stage["deps"].items() if "md5" in dep}
    datasets = {role: {"md5": hashes[path]} for role, path in INDEXED.items() if path in hashes}
    ignores = (path.relative_to(root).as_posix() for path in sorted(root.glob("[!.]*/.gitignore")))
    recipes = (path.relative_to(root).as_posix() for path in sorted(root.glob("params/*.yaml")))
    names = [*TEXTS, *recipes, *(entry["file"] for entry in tracked.values()), *ignores]
    return {
        "lock": lock,
        "tracked": tracked,
        # What a stage read, not what lies there by now: a batch that came later would count as trained on.
        "raw": {path: objects.files(read.get(path, entry["md5"])) for path, entry in tracked.items()},
        "texts": {name: (root / name).read_text(encoding="utf-8") for name in names if (root / name).is_file()},
        "git": workspace_state(root).as_dict(),
        "program": program_identity(),
        "suites": suites(),
        "accounts": index_datasets(root, datasets),
    }


def _inputs(manifest: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """Every versioned path with its hash, and its context: the role it played."""
    roles = {entry["path"]: role for role, entry in manifest["objects"].items()}
    return all_paths(manifest), roles
