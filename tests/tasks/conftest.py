"""A small retraining world for tests of versioning, registry, audit and restore: real DVC, real MLflow, no training.

Its stages have the names, folders and contracts of the real graph; their bodies write a few bytes
that depend on one param, so that tests decide what changes.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from ruamel.yaml import YAML

from plumbline.data_contracts.artifact import Artifact, read_artifact, write_json, writing
from plumbline.data_contracts.records import (
    CuratedPair,
    Merged,
    Message,
    Origin,
    PreferencePair,
    Quarantined,
    dump_jsonl,
)
from plumbline.tasks.params.operations import OperationsParams
from plumbline.tasks.params.registry import RegistryParams
from plumbline.tasks.pipeline.stage import StageRecord
from plumbline.tasks.registry.ledger.ledger import alias_state, history, move_alias, open_ledger
from plumbline.tasks.registry.register_model import Registered, register_model
from plumbline.tasks.registry.store.client import Store
from plumbline.tasks.registry.store.runs import open_run
from plumbline.tasks.registry.versions.registered import resolve
from plumbline.tasks.storage.versioning.git import commit_git
from plumbline.tasks.storage.versioning.workspace import Versions, init_versioning
from tests.support.once import copy_workspace, made_once

# name -> (out, deps, params)
GRAPH: dict[str, tuple[str, list[str], list[str]]] = {
    "base": ("models/base", [], ["seed"]),
    "validate": ("data/validated", ["data/raw"], ["feedback"]),
    "curate": ("data/curated", ["data/validated"], ["curation"]),
    "reference": ("models/reference", ["models/base"], ["reference"]),
    "reward": ("models/reward", ["models/reference", "data/curated"], ["reward"]),
    "finetune": ("models/policy", ["models/reference", "data/curated"], ["finetune"]),
    "evaluate": ("reports/evaluation", ["models/policy", "models/reward", "data/curated"], ["evaluation"]),
    "gate": ("reports/gate", ["reports/evaluation"], ["gate"]),
}
RUBRIC = {"name": "helpfulness", "version": 1, "digest": "ab" * 32}  # of the judge that labelled r1
PARAMS_FILES = ("params.yaml", "params.resolved.yaml")  # the choices, which are all there are, and the resolved set
PARAMS = {
    "seed": 1,
    "feedback": "human_pairs",
    "curation": 1,
    "reference": 1,
    "reward": 1,
    "finetune": {"dpo": {"beta": 0.1}},
    "evaluation": 1,
    "gate": {"pass": True},
}


@dataclass
class World:
    """A workspace with the graph above."""

    root: Path
    registry: RegistryParams = field(default_factory=RegistryParams)

    def set(self, **params: object) -> None:
        path = self.root / "params.yaml"
        document = {**YAML(typ="safe").load(path.read_text()), **params}
        for name in PARAMS_FILES:
            with (self.root / name).open("w") as file:
                YAML(typ="safe").dump(document, file)

    def params(self) -> dict[str, object]:
        loaded: dict[str, object] = YAML(typ="safe").load((self.root / "params.yaml").read_text())
        return loaded

    def write(self, stage: str) -> Artifact:
        """Write a stage's artifact, as its body would."""
        out, deps, keys = GRAPH[stage]
        parents = {dep: read_artifact(self.root / dep).digest for dep in deps if dep != "data/raw"}
        values = {key: self.params()[key] for key in keys}
        with writing(self.root / out, contract=stage, version=1, parents=parents) as draft:
            draft.facts = _body(stage, draft.path, self.root, values)
        return read_artifact(self.root / out)

    def bring_up_to_date(self) -> list[StageRecord]:
        """What the flow does for each stage, in order."""
        records = []
        versions = Versions(self.root)
        for stage, (out, _, _) in GRAPH.items():
            versions.require_clean_inputs(stage)
            reused = versions.reuse(stage)
            if not reused:
                self.write(stage)
                versions.commit_stage(stage)
            records.append(StageRecord(stage, 0.1, reused, read_artifact(self.root / out)))
        return records

    def register(self, *, crowned: bool = True) -> Registered:
        """Register what is up to date; the first that passed is champion, without the gates, since nothing answers."""
        records = self.bring_up_to_date()
        with open_run(self.root, self.registry, flow_run_id="flow-1") as run:
            registered = register_model(self.root, self.registry, records, run)
        if not crowned:
            return registered
        self._crown(registered)
        aliases = resolve(Store(self.root, self.registry), registered.model_uri).aliases
        return replace(registered, alias_uris=[f"models:/{self.registry.model_name}@{alias}" for alias in aliases])

    def _crown(self, registered: Registered) -> None:
        engine, name = open_ledger(self.root, OperationsParams()), self.registry.model_name
        if registered.passed and "champion" not in alias_state(history(engine, name)):
            number = registered.model_uri.rsplit("/", 1)[1]
            named = {"action": "assign", "actor": "tests", "reason": "a champion to begin with", "evidence": {}}
            move_alias(
                engine, Store(self.root, self.registry), alias="champion", version=number, expected=None, **named
            )

    def dvc(self, *arguments: str) -> str:
        """Run DVC's own command line in the workspace."""
        program = Path(sys.executable).with_name("dvc")
        done = subprocess.run([program, *arguments], cwd=self.root, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr


def make_world(root: Path, migrated_store: Path) -> World:
    """A workspace with one raw batch, nothing run yet, committed to git."""
    (root / ".plumbline").mkdir(parents=True)
    shutil.copy(migrated_store, root / ".plumbline/mlflow.db")
    (root / "data/raw/human_pairs").mkdir(parents=True)
    (root / "data/raw/human_pairs/0123456789abcdef.jsonl").write_text('{"id": "r1"}\n')
    (root / ".gitignore").write_text("/.plumbline/\n")
    stages = {
        name: {"cmd": f"false {name}", **({"deps": deps} if deps else {}), "params": params, "outs": [out]}
        for name, (out, deps, params) in GRAPH.items()
    }
    for name, content in (*((name, PARAMS) for name in PARAMS_FILES), ("dvc.yaml", {"stages": stages})):
        with (root / name).open("w") as file:
            YAML(typ="safe").dump(content, file)
    init_versioning(root)
    Versions(root).track("data/raw")
    commit_git(root, "Start")
    return World(root)


def _pair(record: str, line: int) -> dict[str, object]:
    return {
        "id": record,
        "prompt": (Message(role="user", content=f"question {record}"),),
        "chosen": "yes",
        "rejected": "no",
        "source": "human_pairs",
        "annotator": f"annotator-{line % 2}",
        "metadata": {"judge": {"name": "llm", "rubric": RUBRIC}} if record == "r1" else {},
        "origin": Origin(
            file="data/raw/human_pairs/0123456789abcdef.jsonl", line=line, senders=("app",) if record == "r3" else ()
        ),
        "given_id": "row-4" if record == "r4" else None,
    }


def _set_aside(record: str | None, reason: str, line: int) -> Quarantined:
    return Quarantined(
        reason=reason,
        file="data/raw/human_pairs/0123456789abcdef.jsonl",
        line=line,
        expected="a pair",
        found="something else",
        record_id=record,
        raw="{}",
    )


def _body(stage: str, folder: Path, root: Path, values: dict[str, object]) -> dict[str, object]:
    """Files of a stage. The curation param, when 2, moves record r2 from validation into training."""
    if stage == "validate":
        dump_jsonl(folder / "accepted.jsonl", [PreferencePair(**_pair(f"r{n}", n)) for n in (1, 2, 3, 4, 6)])
        broken = [_set_aside("r5", "empty_response", 5), _set_aside(None, "broken_json", 7)]
        dump_jsonl(folder / "quarantine.jsonl", broken)
        return {"read": 7, "accepted": 5, "quarantined": 2}
    if stage == "curate":
        splits = {"train": ["r1"], "validation": ["r2"], "test": ["r3"]}
        if values["curation"] == 2:
            splits = {"train": ["r1", "r2"], "validation": [], "test": ["r3"]}
        for split, names in splits.items():
            pairs = [CuratedPair(**_pair(name, int(name[1:])), cluster=f"c-{name}") for name in names]
            dump_jsonl(folder / f"{split}.jsonl", pairs)
        origin = Origin(file="data/raw/human_pairs/0123456789abcdef.jsonl", line=4)
        dump_jsonl(folder / "merged.jsonl", [Merged(record_id="r4", into="r1", reason="near_duplicate", origin=origin)])
        dump_jsonl(folder / "quarantine.jsonl", [_set_aside("r6", "leaked_label", 6)])
        reasons = {"empty_response": 1, "broken_json": 1, "leaked_label": 1}
        counts = {split: len(names) for split, names in splits.items()}
        return {"read": 7, "accepted": 3, "merged": 1, "quarantined": 3, "reasons": reasons, "splits": counts}
    if stage == "evaluate":
        metrics = {
            "win_rate": {"judge": {"value": 0.7, "low": 0.68, "high": 0.72, "n": 2048}},
            "n": values["evaluation"],
        }
        write_json(folder / "metrics.json", metrics)
        (folder / "plots").mkdir()
        (folder / "plots/reliability.png").write_bytes(b"\x89PNG not really")
        return {"metrics": metrics, "control_tokens": {"rows": 0, "tokens": {}}}
    if stage == "gate":
        passed = bool(values["gate"]["pass"])  # type: ignore[index]
        decision = {"passed": passed, "reasons": [{"name": "win", "passed": passed, "text": "win rate 0.68 ≥ 0.5"}]}
        write_json(folder / "gate.json", decision)
        return decision
    facts = _model(stage, folder, values)
    return {"method": "dpo", **facts} if stage == "finetune" else facts


def _model(stage: str, folder: Path, values: dict[str, object]) -> dict[str, object]:
    from safetensors.numpy import save_file

    weights = np.arange(8, dtype=np.float32) + len(repr((stage, values))) + hash_of_text(repr((stage, values)))
    save_file({"weight": weights}, folder / "model.safetensors")
    write_json(folder / "config.json", {"model_type": stage})
    if stage == "finetune":  # what a checkpoint needs to answer by itself
        for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            write_json(folder / name, {})
        (folder / "chat_template.jinja").write_text("{{ messages }}")
    lines = [f'{{"step": {step}, "loss": {1 / step}, "rewards/accuracies": 0.5}}\n' for step in (1, 2)]
    (folder / "training.jsonl").write_text("".join(lines))
    return {"steps": 2, "beta": 0.1}


def hash_of_text(text: str) -> int:
    return sum(map(ord, text)) % 997


@pytest.fixture(scope="session")
def migrated_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database to copy: making one takes seconds."""

    def make(folder: Path) -> None:
        Store(folder, RegistryParams())

    return made_once("store", (), make, tmp_path_factory.mktemp("made") / "store") / ".plumbline/mlflow.db"


@pytest.fixture(scope="session")
def make_worlds(migrated_store: Path) -> Callable[[Path], World]:
    """Make a fresh workspace at a path."""
    return lambda root: make_world(root, migrated_store)


@pytest.fixture
def world(tmp_path: Path, migrated_store: Path) -> World:
    """A fresh workspace of its own."""
    return make_world(tmp_path / "workspace", migrated_store)


@pytest.fixture(scope="session")
def registered_world(tmp_path_factory: pytest.TempPathFactory, migrated_store: Path) -> World:
    """A workspace with version 1 passed (seed 1), 2 rejected (other policy), 3 passed (r2 moved to training).

    Shared: a test that changes it puts it back.
    """

    def make(folder: Path) -> None:
        world = make_world(folder / "workspace", migrated_store)
        world.register()
        world.set(finetune={"dpo": {"beta": 0.2}}, gate={"pass": False})
        world.register()
        world.set(finetune={"dpo": {"beta": 0.1}}, gate={"pass": True}, curation=2)
        world.register()

    kept = made_once("registered", (Path(__file__),), make, tmp_path_factory.mktemp("made") / "world")
    root = tmp_path_factory.mktemp("registered") / "workspace"
    copy_workspace(kept / "workspace", root)
    return World(root)
