"""Time of an audit without re-hashing, on a registry of 1,000 versions and 1,000,000 records.

    python -m benchmarks.audit_scale [--versions 1000] [--records 1000000] [--folder DIR]

The registry is synthetic and structurally real: a workspace under DVC, datasets in its cache (shared: every 25th
version brings a new one), one manifest a version in MLflow's artifact folder, pinned by its tag, and rows in
MLflow's own tables (its client would take minutes). Manifests are as long as a real one. Measured are the first
question (which makes the derived indexes), then every question in a warm process, then whole cold processes as a shell
starts them: wall and CPU seconds. A folder that holds the registry already is measured again, not built.
"""

from __future__ import annotations

import argparse
import hashlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table
from sqlalchemy import insert

from plumbline.flows.graph import environment
from plumbline.flows.graph.workspaces import init_workspace
from plumbline.tasks.params.registry import RegistryParams
from plumbline.tasks.registry.audit_lineage import audit_model
from plumbline.tasks.registry.store.client import Store
from plumbline.tasks.registry.trace_lineage import audit_record, trace
from plumbline.tasks.storage.versioning.objects import ObjectStore

VERSIONS_A_DATASET = 25
ANNOTATORS = 200
REPEATS = 5


def main() -> None:
    """Build, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", type=int, default=1000)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    environment.prepare(threads=1)
    with tempfile.TemporaryDirectory() as scratch:
        root = (options.folder or Path(scratch)) / "workspace"
        if not root.exists():
            build(root, options.versions, options.records)
        Console().print(measure(root, options.versions))


def build(root: Path, versions: int, records: int) -> None:
    """The workspace, its datasets and its registry."""
    init_workspace(root)
    store = Store(root, RegistryParams())
    datasets = max(1, versions // VERSIONS_A_DATASET)
    made = [_dataset(root, number, records // datasets) for number in range(datasets)]
    manifests = [
        _manifest(number, made[(number - 1) // VERSIONS_A_DATASET % datasets]) for number in range(1, versions + 1)
    ]
    _register(store, root, manifests)


def _dataset(root: Path, number: int, size: int) -> tuple[str, str, int]:
    """A curated dataset in DVC's cache: nine tenths to train on. Returns its hash, its batch and its size."""
    objects, batch = ObjectStore(root), f"{number:016x}"
    lines = [
        orjson.dumps(
            {
                "annotator": f"annotator-{(record * 7919) % ANNOTATORS}",
                "chosen": f"yes {record}",
                "id": f"record-{number}-{record}",
                "origin": {"file": f"data/raw/human_pairs/{batch}.jsonl", "line": record + 1},
                "prompt": [{"content": f"question {record}", "role": "user"}],
                "rejected": "no",
                "source": "human_pairs",
            }
        )
        + b"\n"
        for record in range(size)
    ]
    cut = size * 9 // 10
    files = {"train.jsonl": b"".join(lines[:cut]), "test.jsonl": b"".join(lines[cut:])}
    listing = []
    for name, data in sorted(files.items()):
        digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
        _put(objects, digest, data)
        listing.append({"md5": digest, "relpath": name})
    data = orjson.dumps(listing)
    digest = hashlib.md5(data, usedforsecurity=False).hexdigest() + ".dir"
    _put(objects, digest, data)
    return digest, batch, size


def _put(objects: ObjectStore, digest: str, data: bytes) -> None:
    path = objects.cache_path(digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _manifest(number: int, dataset: tuple[str, str, int]) -> dict[str, Any]:
    """A manifest as long as a real one (its environment lock and texts), over one dataset."""
    digest, batch, size = dataset

    def md5(what: str) -> str:
        return hashlib.md5(f"{what} {number}".encode(), usedforsecurity=False).hexdigest() + ".dir"

    def stage(out: str, md5_: str | None, **deps: str | None) -> dict[str, Any]:
        reads = {path: {"md5": value} for path, value in deps.items()}
        return {"cmd": "x", "params": {}, "deps": reads, "outs": {out: {"md5": md5_}}, "artifact": None}

    paths = {"policy": "models/policy", "reference": "models/reference", "reward": "models/reward"}
    objects = {role: {"path": path, "md5": md5(role), "digest": None} for role, path in paths.items()}
    objects["curated"] = {"path": "data/curated", "md5": digest, "digest": None}
    finetune = {path: objects[role]["md5"] for role, path in paths.items() if role != "policy"}
    return {
        "schema": "plumbline.model",
        "version": 1,
        "model": {"name": "assistant", "key": f"{number:064x}"},
        "git": {"commit": f"{number // 10:040x}", "dirty": False, "diff": ""},
        "program": {"version": "0.1.0", "git_commit": f"{number // 50 + 7:040x}", "source_sha256": "0" * 64},
        "environment": {
            "python": "3.11",
            "platform": "Linux-x86_64",
            "packages": {f"package-{n}": "1.0.0" for n in range(300)},
            "sha256": "0" * 64,
        },
        "texts": {"params.yaml": {"text": f"seed: {number}\n" + "# a tunable\n" * 600, "sha256": "0" * 64}},
        "stages": {
            "curate": stage("data/curated", digest),
            "reference": stage("models/reference", objects["reference"]["md5"]),
            "reward": stage("models/reward", objects["reward"]["md5"], **{"data/curated": digest}),
            "finetune": stage("models/policy", objects["policy"]["md5"], **{"data/curated": digest}, **finetune),
        },
        "tracked": {},
        "raw_batches": [{"path": f"data/raw/human_pairs/{batch}.jsonl", "md5": batch * 2}],
        "objects": objects,
        "suites": {},
        "accounts": {},  # counted from the data on the first question, as for versions of an older program
        "judge_prompts": [{"name": "helpfulness", "version": 1, "digest": "ab" * 32, "used_by": ["finetune"]}],
        "contracts": {},
        "counts": {"read": size, "accepted": size, "merged": 0, "quarantined": 0, "reasons": {}},
        "settings": {},
        "as_run": {"finetune": {"method": "dpo"}},
        "evaluation": {},
        "gate": {"passed": True, "reasons": []},
        "flow_run_id": None,
        "trigger_event_id": None,
        "files": {},
    }


def _register(store: Store, root: Path, manifests: list[dict[str, Any]]) -> None:
    from mlflow.store.model_registry.dbmodels.models import SqlModelVersion, SqlModelVersionTag

    store.client.create_registered_model("assistant")
    versions, tags = [], []
    for number, manifest in enumerate(manifests, start=1):
        folder = root / ".plumbline/mlartifacts" / str(number)
        folder.mkdir(parents=True)
        data = orjson.dumps(manifest, option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2)
        (folder / "manifest.json").write_bytes(data)
        now = int(time.time() * 1000) + number
        row = {"name": "assistant", "version": number, "creation_time": now, "last_updated_time": now}
        place = folder.as_uri()
        versions.append(row | {"source": place, "storage_location": place, "status": "READY", "current_stage": "None"})
        objects = {f"plumbline.md5.{role}": entry["md5"] for role, entry in manifest["objects"].items()}
        pinned = {"plumbline.manifest_sha256": hashlib.sha256(data).hexdigest(), "plumbline.gate": "passed", **objects}
        pinned["plumbline.key"] = manifest["model"]["key"]
        tags += [{"name": "assistant", "version": number, "key": key, "value": value} for key, value in pinned.items()]
    registry = store.client._get_registry_client().store
    with registry.ManagedSessionMaker() as session:
        session.execute(insert(SqlModelVersion), versions)
        session.execute(insert(SqlModelVersionTag), tags)
    store.client.set_registered_model_alias("assistant", "champion", str(len(manifests) - 10))


def measure(root: Path, versions: int) -> Table:
    """The table of figures, in seconds."""
    params = RegistryParams()
    newest = (versions - 1) // VERSIONS_A_DATASET
    table = Table("question", "answers", "first", "warm, median of 5", "cold process", "its CPU", box=None)
    questions: list[tuple[str, list[str], Callable[[], int]]] = [
        (
            "audit models:/assistant@champion",
            ["models:/assistant@champion", "--no-rehash"],
            lambda: len(audit_model(root, "models:/assistant@champion", params, rehash=False).lineage["nodes"]),
        ),
        ("--record", ["--record", "record-3-77"], lambda: len(audit_record(root, "record-3-77", params).versions)),
    ]
    for kind, key in (
        ("annotator", "annotator-7"),
        ("batch", f"{newest:016x}"),
        ("judge_prompt", "helpfulness@1"),
        ("reward_model", hashlib.md5(b"reward 500", usedforsecurity=False).hexdigest()),
        ("commit", f"{50:040x}"),
    ):
        option = "--" + kind.replace("_", "-")
        questions.append(
            (option, [option, key], lambda kind=kind, key=key: len(trace(root, kind, key, params).versions))  # type: ignore[misc]
        )
    for name, arguments, ask in questions:
        first, answers = _timed(ask)
        warm = statistics.median(_timed(ask)[0] for _ in range(REPEATS))
        command = [sys.executable, "-m", "plumbline", "audit", *arguments, "-C", str(root), "--json"]
        cold = [_cold(command) for _ in range(REPEATS)]
        wall, cpu = (statistics.median(values) for values in zip(*cold, strict=True))
        table.add_row(name, str(answers), f"{first:.2f}", f"{warm:.3f}", f"{wall:.2f}", f"{cpu:.2f}")
    return table


def _cold(command: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds of one process, its start included."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, capture_output=True, check=False)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _timed(ask: Callable[[], int]) -> tuple[float, int]:
    started = time.perf_counter()
    answer = ask()
    return time.perf_counter() - started, answer


if __name__ == "__main__":
    main()
