"""The manifest of a model version: everything that made it, complete without the workspace.

`lineage` is what DVC and git know, gathered by the verb (this package knows MLflow alone):
{"lock": stages of dvc.lock, "tracked": {path: entry}, "raw": {path: {file: md5}}, "texts":
{"params.yaml": …}, "git": {…}, "program": {…}}. The manifest holds no clock, so that registering
the same results again gives the same bytes up to the ids of the runs.

Keys may be added, never renamed or removed: what an older program registered stays readable. Added since the first
version of the schema: "suites", "accounts", "judge_prompts", "trigger", "warnings" and "mlflow_run_id".
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.metadata import distributions
from typing import TYPE_CHECKING, Any

import orjson

from plumbline.data_contracts.artifact import MANIFEST, Artifact, warnings_of

if TYPE_CHECKING:
    from plumbline.tasks.pipeline.stage import StageRecord

SCHEMA = "plumbline.model"
VERSION = 1
ROLES = {
    "policy": "models/policy",
    "reference": "models/reference",
    "base": "models/base",
    "reward": "models/reward",
    "curated": "data/curated",
    "validated": "data/validated",
    "world": "data/world",
    "lengths": "reports/lengths",
    "evaluation": "reports/evaluation",
    "gate": "reports/gate",
    "raw": "data/raw",
}


def build_manifest(
    *,
    model_name: str,
    key: str,
    records: Sequence[StageRecord],
    lineage: Mapping[str, Any],
    files: Mapping[str, Mapping[str, Any]],
    settings: Mapping[str, Any],
    flow_run_id: str | None,
    mlflow_run_id: str | None = None,
    trigger: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Assemble the manifest. `files` are the registered artifacts: path -> {"sha256", "bytes"}."""
    artifacts = {record.name: record.artifact for record in records}
    gate = artifacts["gate"].facts
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "model": {"name": model_name, "key": key},
        "git": lineage["git"],
        "program": lineage["program"],
        "environment": environment(),
        "texts": {
            name: {"text": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}
            for name, text in lineage["texts"].items()
        },
        "stages": {name: _stage(entry, artifacts.get(name)) for name, entry in lineage["lock"].items()},
        "tracked": {path: {"md5": entry["md5"], "file": entry["file"]} for path, entry in lineage["tracked"].items()},
        "raw_batches": [
            {"path": f"{folder}/{file}", "md5": digest}
            for folder, listing in sorted(lineage["raw"].items())
            for file, digest in sorted(listing.items())
            if not file.rpartition("/")[2].startswith(".")  # who sent them, and what was withdrawn
        ],
        "objects": _objects(lineage, artifacts.values()),
        "suites": dict(lineage.get("suites", {})),
        "accounts": dict(lineage.get("accounts", {})),
        "judge_prompts": _judge_prompts(artifacts, lineage.get("accounts", {})),
        "contracts": {artifact.contract: artifact.version for artifact in artifacts.values()},
        "counts": counts_of(artifacts),
        "settings": dict(settings),
        "as_run": {name: _as_run(name, artifact.facts) for name, artifact in artifacts.items() if name != "gate"},
        "evaluation": dict(artifacts["evaluate"].facts.get("metrics", {})),
        "gate": {"passed": bool(gate["passed"]), "reasons": list(gate["reasons"])},
        "warnings": warnings_of(artifacts),
        "flow_run_id": flow_run_id,
        "mlflow_run_id": mlflow_run_id,
        "trigger_event_id": (trigger or {}).get("event_id"),
        "trigger": dict(trigger) if trigger is not None else None,
        "promoted_by": None,
        "files": {name: dict(entry) for name, entry in files.items()},
    }


def _as_run(stage: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a stage, without those that stand in a part of their own."""
    return {name: value for name, value in facts.items() if (stage, name) != ("evaluate", "metrics")}


def counts_of(artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
    """The counts of the data: read = accepted + merged + quarantined, reasons and splits."""
    facts = artifacts["curate"].facts
    names = ("read", "accepted", "merged", "quarantined", "reasons", "splits")
    return {name: facts[name] for name in names if name in facts}


def _judge_prompts(artifacts: Mapping[str, Artifact], accounts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every judge's rubric behind the version: it ranked candidates in training, or labelled pairs of the data."""
    found: dict[str, dict[str, Any]] = {}
    for stage, artifact in artifacts.items():
        rubric = (artifact.facts.get("ranking") or {}).get("rubric")
        if rubric is not None:
            found.setdefault(rubric["digest"], {**rubric, "used_by": []})["used_by"].append(stage)
    for role, account in accounts.items():
        for name in sorted({name for counts in account.get("judge_prompts", {}).values() for name in counts}):
            label, digest = name.rsplit(" ", 1)
            title, version = label.rsplit("@", 1)
            rubric = {"name": title, "version": int(version), "digest": digest, "used_by": []}
            found.setdefault(digest, rubric)["used_by"].append(role)
    return [found[digest] for digest in sorted(found)]


def all_paths(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Every DVC-versioned path of a manifest -> its hash: outputs of all stages and tracked raw data."""
    paths = {path: entry["md5"] for path, entry in manifest["tracked"].items()}
    for stage in manifest["stages"].values():
        paths |= {path: entry["md5"] for path, entry in stage["outs"].items()}
    return dict(sorted(paths.items()))


def broken_links(manifest: Mapping[str, Any]) -> list[str]:
    """Stages that read another version of a path than the manifest names: mixed lineage, in words."""
    paths = all_paths(manifest)
    problems = []
    for name, stage in manifest["stages"].items():
        for path, entry in stage["deps"].items():
            if path in paths and paths[path] != entry["md5"]:
                problems.append(f"stage {name} read {path} as {entry['md5']}, but the version names {paths[path]}.")
    return problems


def environment() -> dict[str, Any]:
    """The environment lock: Python, platform and every installed distribution with its version."""
    lock = dict(_installed())
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()}-{platform.machine()}",
        "packages": lock,
        "sha256": hashlib.sha256(orjson.dumps(lock, option=orjson.OPT_SORT_KEYS)).hexdigest(),
    }


@cache
def _installed() -> tuple[tuple[str, str], ...]:
    """Name and version of every distribution, read once: the metadata of three hundred takes a second."""
    names = ((item.metadata["Name"], item.version) for item in distributions())
    return tuple(sorted({str(name).lower().replace("_", "-"): version for name, version in names if name}.items()))


def _stage(entry: Mapping[str, Any], artifact: Artifact | None) -> dict[str, Any]:
    keep = ("md5", "size", "nfiles")
    links = {
        side: {path: {name: item[name] for name in keep if name in item} for path, item in entry[side].items()}
        for side in ("deps", "outs")
    }
    made = artifact and {
        "digest": artifact.digest,
        "contract": artifact.contract,
        "contract_version": artifact.version,
        "parents": dict(artifact.parents),
    }
    return {"cmd": entry["cmd"], "params": entry["params"], **links, "artifact": made}


def _objects(lineage: Mapping[str, Any], artifacts: Iterable[Artifact]) -> dict[str, dict[str, Any]]:
    """The objects that people ask for, by role: path, DVC hash and artifact digest."""
    hashes = {path: entry["md5"] for path, entry in lineage["tracked"].items()}
    for stage in lineage["lock"].values():
        hashes |= {path: entry["md5"] for path, entry in stage["outs"].items()}
    digests = {artifact.path.parts[-2:]: artifact.digest for artifact in artifacts}
    found = {role: path for role, path in ROLES.items() if path in hashes}
    return {
        role: {"path": path, "md5": hashes[path], "digest": digests.get(tuple(path.split("/")))}
        for role, path in found.items()
    }


def published_files(artifact: Artifact, folder: str) -> dict[str, dict[str, Any]]:
    """The files of an artifact as they are registered under `folder`, its own manifest included."""
    files = {f"{folder}/{name}": dict(entry) for name, entry in artifact.files.items()}
    size = (artifact.path / MANIFEST).stat().st_size
    return {**files, f"{folder}/{MANIFEST}": {"sha256": artifact.digest, "bytes": size}}
