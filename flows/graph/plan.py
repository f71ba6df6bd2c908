"""The plan of a retraining run: which stages would run and why, on how many records, for how long, with what disk.

Nothing in the workspace is written. DVC says what a run would do; MLflow knows how long each stage took.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from plumbline.data_contracts.artifact import MANIFEST, read_artifact
from plumbline.flows.graph.params_stage import values_for_dvc
from plumbline.flows.graph.preflight import check_params
from plumbline.flows.graph.stages import STAGES
from plumbline.tasks.data.feedback.batches import BatchChoices, store_batch
from plumbline.tasks.data.feedback.places import expand
from plumbline.tasks.data.ingest_feedback import arrived_batches, has_arrived
from plumbline.tasks.data.validate_feedback import RAW
from plumbline.tasks.params.document import changed_keys
from plumbline.tasks.params.whole import Params
from plumbline.tasks.registry.register_model import PUBLISHED
from plumbline.tasks.registry.store.client import Store
from plumbline.tasks.registry.store.lookup import stage_seconds
from plumbline.tasks.registry.versions.registered import KEY_TAG, all_versions, results_key
from plumbline.tasks.storage.versioning.lock import read_lock
from plumbline.tasks.storage.versioning.objects import ObjectStore
from plumbline.tasks.storage.versioning.standing import Standing
from plumbline.tasks.storage.versioning.workspace import Versions
from plumbline.tasks.training.footprint import Footprint, Shapes, footprints, parameters, read_shapes, tiny_shapes

BASE = Path(STAGES["base"].out)
RUNS = ("run", "follow")
_COUNTS = ("read", "accepted", "merged", "quarantined", "splits", "unpaired")


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """One stage: its standing, the reasons, the seconds of its last run (None: no record), bytes kept and at work.

    `kept_bytes` is None if nothing tells how large its output will be.
    """

    name: str
    standing: Standing
    why: list[str]
    last_seconds: float | None
    kept_bytes: int | None
    working_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """As JSON-able facts."""
        return {
            **asdict(self.standing),
            "why": self.why,
            "last_seconds": self.last_seconds,
            "kept_bytes": self.kept_bytes,
            "working_bytes": self.working_bytes,
        }


@dataclass(frozen=True, slots=True)
class RunPlan:
    """The steps and costs of `plumbline retrain`, were it run now.

    `model_uri` is the version that its results have already; None if a run would register one. `records` counts
    what the last run counted, and `to_ingest` what comes beside it.
    """

    params_changed: list[str]
    stages: list[PlannedStage]
    model: dict[str, Any]
    model_uri: str | None
    to_ingest: list[dict[str, Any]]
    records: dict[str, Any] | None
    disk: dict[str, Any]

    @property
    def to_run(self) -> list[PlannedStage]:
        """The stages that would run, as far as inputs of theirs come out different."""
        return [stage for stage in self.stages if stage.standing.action in RUNS]

    def as_dict(self) -> dict[str, Any]:
        """The JSON object of `plumbline retrain --dry-run --json`."""
        known = [stage.last_seconds for stage in self.to_run if stage.last_seconds is not None]
        return {
            "params_changed": self.params_changed,
            "stages": [stage.as_dict() for stage in self.stages],
            "model": self.model,
            "registered": self.model_uri,
            "to_ingest": self.to_ingest,
            "records_at_last_run": self.records,
            "minutes": round(sum(known) / 60, 2),
            "minutes_not_known_of": [stage.name for stage in self.to_run if stage.last_seconds is None],
            "disk": self.disk,
        }


def plan_run(root: Path, overlays: Sequence[str | Path], settings: Sequence[str], once: Sequence[str] = ()) -> RunPlan:
    """Plan a run with these params. Raises what the run would raise before its first stage, as far as files tell."""
    params, document = check_params(root, overlays, settings, once)
    to_ingest = _to_ingest(root, params)
    fresh = [f"{batch['rows']} rows of {batch['path']}" for batch in to_ingest if batch["new"]]
    if has_arrived(root):
        fresh.append("what arrived since the last run")
    changing = {RAW: f"takes in {' and '.join(fresh)}"} if fresh else {}
    standings = Versions(root).standings(list(STAGES), values=values_for_dvc(params), changing=changing)
    store = Store(root, params.registry, read_only=True)
    shapes = _shapes(root, params, standings["base"])
    stages = _planned(root, standings, stage_seconds(store), _footprints(root, params, shapes, to_ingest))
    return RunPlan(
        changed_keys(root, document),
        stages,
        _model(params, shapes),
        _registered(root, store, standings),
        to_ingest,
        _records(root),
        _disk(root, params, stages),
    )


def _to_ingest(root: Path, params: Params) -> list[dict[str, Any]]:
    """The files that params name: rows and digest of each, and whether the raw store lacks it."""
    found = []
    waiting = {name for _, name, _ in arrived_batches(root)}
    for source, named, columns in params.feedback.to_ingest():
        for path in expand([named]):
            found.append(
                _planned_batch(root, waiting, source, path, BatchChoices(columns, limits=params.feedback.limits()))
            )
    return found


def _planned_batch(
    root: Path, waiting: Set[str], source: str, path: str | Path, intake: BatchChoices
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="plumbline-plan-") as scratch:
        batch = store_batch(path, source, Path(scratch), intake=intake)
        stored = f"{RAW}/{source}/{batch.path.name}"
        return {
            "source": source,
            "path": str(path),
            "rows": batch.rows,
            "bytes": batch.path.stat().st_size,
            "sha256": batch.digest,
            "new": stored not in waiting and not (root / stored).exists(),
        }


def _shapes(root: Path, params: Params, base: Standing) -> Shapes | None:
    """Of the base that a run would use; None for a model that is not on this machine."""
    if base.action == "reuse":
        return read_shapes(root / BASE)
    if params.reference.base is None:
        return tiny_shapes(params.tiny_model)
    folders = [root / params.reference.base, Path(params.reference.base).expanduser()]
    there = [folder for folder in folders if any(folder.glob("*.safetensors"))]
    return read_shapes(there[0]) if there else None


def _footprints(
    root: Path, params: Params, shapes: Shapes | None, to_ingest: Sequence[Mapping[str, Any]]
) -> dict[str, Footprint]:
    if shapes is None:
        return {}
    stored = sum(path.stat().st_size for path in (root / RAW).rglob("*") if path.is_file())
    return footprints(params, shapes, stored + sum(batch["bytes"] for batch in to_ingest if batch["new"]))


def _planned(
    root: Path, standings: Mapping[str, Standing], seconds: Mapping[str, float], sizes: Mapping[str, Footprint]
) -> list[PlannedStage]:
    outs = {
        name: sum(int(out.get("size", 0)) for out in kept["outs"].values()) for name, kept in read_lock(root).items()
    }
    planned = []
    for name, standing in standings.items():
        size = sizes.get(name, Footprint(0))
        estimates = [bytes_ for bytes_ in (outs.get(name), size.kept) if bytes_]
        kept = 0 if standing.action == "reuse" else max(estimates, default=None)
        working = size.working if standing.action in RUNS else 0
        planned.append(PlannedStage(name, standing, _why(standing), seconds.get(name), kept, working))
    return planned


def _why(standing: Standing) -> list[str]:
    """One line for each thing that changed, as a person reads it."""
    if standing.action == "reuse":
        return []
    if not standing.recorded:
        return ["never run"] if standing.action in RUNS else []
    lines = [f"{change.key}: {change.old!r} -> {change.new!r}" for change in standing.params]
    lines += [f"input {change.path}: {change.change}" for change in standing.inputs]
    lines += [f"output {change.path}: {change.change}" for change in standing.outputs]
    return lines or ["its command or outputs in dvc.yaml changed"]


def _model(params: Params, shapes: Shapes | None) -> dict[str, Any]:
    return {
        "base": params.reference.base or "tiny_model, trained from scratch on the sample world",
        "parameters": None if shapes is None else parameters(shapes),
        "methods": list(params.finetune.methods),
        "name": params.registry.model_name,
    }


def _registered(root: Path, store: Store, standings: Mapping[str, Standing]) -> str | None:
    if any(standing.action != "reuse" for standing in standings.values()):
        return None
    key = results_key([read_artifact(root / STAGES[name].out).digest for name in PUBLISHED])
    versions = all_versions(store, store.params.model_name)
    return next((version.uri for version in versions if version.tags.get(KEY_TAG) == key), None)


def _records(root: Path) -> dict[str, Any] | None:
    """What curation counted when it last ran; None if it never did."""
    curated = root / STAGES["curate"].out
    if not (curated / MANIFEST).is_file():
        return None
    facts = read_artifact(curated).facts
    return {name: facts[name] for name in _COUNTS if name in facts}


def _disk(root: Path, params: Params, stages: Sequence[PlannedStage]) -> dict[str, Any]:
    """Bytes that a run adds for good, and those that it needs while it is under way.

    An output is kept in the workspace and in DVC's cache, and in the remote where that is a folder of the workspace;
    a registered policy is kept in MLflow too.
    """
    pushed = params.registry.push and ObjectStore(root).shared_remote is None
    copies = 3 if pushed else 2
    kept = {stage.name: stage.kept_bytes or 0 for stage in stages}
    published = sum(kept[name] for name in PUBLISHED) if params.registry.tracking_uri is None else 0
    added = copies * sum(kept.values()) + published
    working = sum(stage.working_bytes for stage in stages)
    free = shutil.disk_usage(root).free
    return {
        "copies": copies,
        "added_bytes": added,
        "working_bytes": working,
        "free_bytes": free,
        "enough": free > added + working,
        "not_known_of": [stage.name for stage in stages if stage.kept_bytes is None],
    }
