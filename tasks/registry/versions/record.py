"""MLflow's entry of a version, held to its signed manifest: people read MLflow's page, and anyone can write there.

Compared are figures, settings, tags, data and plots of the run; the same of its stages' runs, which all have to be
there and no others; and tags and description of the version. Each difference is a sentence with the key, MLflow's value
and the manifest's. What an older program did not put into the manifest is a note, and so are tags, files and aliases of
people's own. Curves of training are not compared.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plumbline.data_contracts.artifact import sha256_file
from plumbline.tasks.params.section import flatten
from plumbline.tasks.registry.ledger.ledger import ALIASES
from plumbline.tasks.registry.store.client import Store, refusals
from plumbline.tasks.registry.store.reader import RunRecord
from plumbline.tasks.registry.store.runs import PARAM_CHARACTERS, figures, in_order, mlflow_key, param_text
from plumbline.tasks.registry.versions.manifest import all_paths
from plumbline.tasks.registry.versions.registered import OBJECT_TAG
from plumbline.tasks.registry.versions.stored import GATE_TAG, KEY_TAG, MANIFEST_TAG, Version
from plumbline.tasks.storage.database.location import local_path

_OURS = ("plumbline.", "prefect.")  # tags that a run or a registration writes
_OF_PROCESS = ("plumbline.host", "plumbline.pid", "plumbline.reused")  # who ran it, which no manifest holds
_OF_SIGNATURE = "plumbline.seal"  # verified with the signature
_NOTE = "mlflow.note.content"  # what the page shows as a run's description
_REPORTED = ("evaluate", "gate")  # stages with sections of their own in the manifest
_CLOCKED = "seconds"
_LOGGED = "models:/"
_LOGGED_ID = "m-"  # a version made from another has `models:/NAME/NUMBER`
_MOST = 200  # characters of a value in a sentence


@dataclass(slots=True)
class RecordCheck:
    """`problems`: what differs, a sentence each. `notes`: what could not be compared, or is people's own."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check_record(store: Store, version: Version, manifest: Mapping[str, Any]) -> RecordCheck:
    """Compare MLflow's record of a version with its manifest. Raises `RegistryError` if MLflow does not answer."""
    found = RecordCheck()
    found.problems += _version_tags(version, manifest)
    found.notes += [f"tag {key} of {version.uri} is on no record." for key in version.tags if not _ours(key)]
    found.notes += [
        f"alias {alias} of {version.uri}: the ledger keeps no such alias, so nobody approved it on record."
        for alias in version.aliases
        if alias not in ALIASES
    ]
    with refusals(f"what MLflow shows of {version.uri}"):
        shown = store.reader.version(version.name, version.number)
    if shown is not None:
        if shown.description:
            found.problems.append(_differs("description", version.uri, shown.description, "none"))
        found.problems += _model_record(store, version, shown.source or "", manifest)
    signed = manifest.get("mlflow_run_id")
    if signed is not None and version.run_id != signed:
        found.problems.append(_differs("run", version.uri, version.run_id or "none", signed))
    run_id = signed or version.run_id
    if run_id is None:
        found.notes.append("MLflow names no run of this version: its figures and params could not be compared.")
        return found
    with refusals(f"run {run_id} of {version.uri}"):
        runs = store.reader.runs(run_id)
    _check_runs(found, runs, run_id, manifest)
    if run_id in runs:
        problems, notes = _plots(f"run {run_id}", runs[run_id], store, manifest)
        found.problems += problems
        found.notes += notes
    return found


def _model_record(store: Store, version: Version, source: str, manifest: Mapping[str, Any]) -> Iterator[str]:
    """A logged model has no figures and params of its own: MLflow's page would show them as the version's."""
    model_id = source.removeprefix(_LOGGED)
    if model_id == source or not model_id.startswith(_LOGGED_ID):
        return
    with refusals(f"the logged model of {version.uri}"):
        logged = store.reader.logged_model(model_id)
    where = f"logged model {logged.run_id}"
    yield from _figures(where, logged, {})
    yield from _values("param", where, logged.params, {})
    yield from _run_tags(where, logged, {KEY_TAG: str(manifest["model"]["key"])})


def _check_runs(found: RecordCheck, runs: Mapping[str, RunRecord], run_id: str, manifest: Mapping[str, Any]) -> None:
    run = runs.get(run_id)
    if run is None:
        found.problems.append(f"run {run_id}: gone from MLflow; the manifest's figures, params and data are not shown.")
        return
    if run.deleted:
        found.problems.append(f"run {run_id}: deleted in MLflow. `mlflow.client.restore_run` brings it back.")
    where = f"run {run_id}"
    found.problems += _figures(where, run, figures(manifest["evaluation"]))
    cut = [] if "mlflow_run_id" in manifest else [key for key, text in run.params.items() if _is_cut(text)]
    found.notes += [
        f"param {key} of {where}: cut to {PARAM_CHARACTERS} characters, could not be compared." for key in cut
    ]
    found.problems += _params(where, run.params, dict(flatten(manifest["settings"])), cut)
    found.problems += _values("dataset", where, _data(run), _expected_data(manifest))
    tags = {KEY_TAG: str(manifest["model"]["key"])}
    if manifest.get("flow_run_id") is not None:
        tags["prefect.flow_run_id"] = str(manifest["flow_run_id"])
    found.problems += _run_tags(where, run, tags)
    children = [child for child in runs.values() if child.run_id != run_id]
    for child in children:
        found.problems += _stage_run(child, manifest)
    found.problems += _other_runs(where, children, manifest)


def _stage_run(child: RunRecord, manifest: Mapping[str, Any]) -> Iterator[str]:
    """A stage's run against the facts of its artifact."""
    name = child.tags.get("plumbline.stage")
    facts = _facts_of(str(name), manifest)
    if facts is None:  # a stage of a program that had another graph
        return
    where = f"run {child.run_id} of stage {name}"
    if child.deleted:
        yield f"{where}: deleted in MLflow."
    yield from _figures(where, child, figures(facts))
    artifact = manifest["stages"].get(name, {}).get("artifact") or {}
    tags = {"plumbline.stage": str(name)}
    if "digest" in artifact:
        tags["plumbline.artifact"] = artifact["digest"]
    yield from _run_tags(where, child, tags)
    if "as_run" in manifest:
        yield from _values("param", where, child.params, {})
        yield from _values("dataset", where, _data(child), {})


def _other_runs(where: str, children: Sequence[RunRecord], manifest: Mapping[str, Any]) -> Iterator[str]:
    """Runs below the run that are no stage's, and stages whose run is gone; an older program named no stages' facts."""
    if "as_run" not in manifest or not children:
        return
    expected = {*manifest["as_run"], *_REPORTED}
    named = {child.run_id: child.tags.get("plumbline.stage") for child in children}
    for child, stage in named.items():
        if stage not in expected and stage not in manifest["stages"]:
            yield f"run {child} below {where}: the manifest has no such run; nobody signed what it shows."
    for stage in sorted(expected - set(named.values())):
        yield f"run of stage {stage} below {where}: gone from MLflow."


def _plots(where: str, run: RunRecord, store: Store, manifest: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Files of the run on this machine: plots that are not the registered ones; and, to note, files of people's own."""
    path = local_path(store.located(run.artifacts)) if run.artifacts else None
    if path is None or not Path(path).is_dir():
        return [], []
    prefix = "evaluation/"
    signed = {name.removeprefix(prefix): entry["sha256"] for name, entry in manifest["files"].items()}
    present = {file.relative_to(path).as_posix(): file for file in sorted(Path(path).rglob("*")) if file.is_file()}
    ours = {name for name in present if name.startswith("plots/")}
    wrong = [
        f"file {name} of {where}: not the one that was signed."
        for name in sorted(ours)
        if _other(present, signed, name)
    ]
    return wrong, [f"file {name} of {where} is on no record." for name in sorted(present.keys() - ours)]


def _other(present: Mapping[str, Path], signed: Mapping[str, str], name: str) -> bool:
    return sha256_file(present[name]) != signed.get(name)


def _facts_of(stage: str, manifest: Mapping[str, Any]) -> Mapping[str, Any] | None:
    if stage == "gate":
        return {"passed": manifest["gate"]["passed"]}
    facts: Mapping[str, Any] | None = manifest.get("as_run", {}).get(stage)
    if stage == "evaluate":
        return {**(facts or {}), "metrics": manifest["evaluation"]}
    return facts


def _figures(where: str, run: RunRecord, expected: Mapping[str, float]) -> Iterator[str]:
    """Every value that was ever logged for a figure: the page draws all of them."""
    named = {mlflow_key(name): value for name, value in expected.items()}
    for key in sorted(named.keys() | run.metrics.keys()):
        if key == _CLOCKED and key not in named:
            continue
        values, signed = run.metrics.get(key), named.get(key)
        if values is None:
            yield _differs(f"metric {key}", where, "none", signed)
        else:
            for value in sorted(values, key=lambda each: (math.isnan(each), each)):
                if value != signed:
                    yield _differs(f"metric {key}", where, value, "none" if signed is None else signed)


def _params(where: str, shown: Mapping[str, str], settings: Mapping[str, Any], cut: Sequence[str]) -> Iterator[str]:
    """Params as texts; an older program gave MLflow the keys inside a value in the order of the file."""
    values = {mlflow_key(name): value for name, value in settings.items()}
    same = {key for key, text in shown.items() if key in cut or (key in values and _same(text, values[key]))}
    yield from _values(
        "param",
        where,
        {key: text for key, text in shown.items() if key not in same},
        {key: param_text(value) for key, value in values.items() if key not in same},
    )


def _is_cut(text: str) -> bool:
    return len(text) == PARAM_CHARACTERS


def _same(text: str, value: Any) -> bool:
    if text == param_text(value):
        return True
    try:
        return isinstance(value, list | dict) and in_order(ast.literal_eval(text)) == in_order(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return False  # no text of ours


def _values(kind: str, where: str, shown: Mapping[str, str], expected: Mapping[str, str]) -> Iterator[str]:
    for key in sorted(shown.keys() | expected.keys()):
        if shown.get(key) != expected.get(key):
            yield _differs(f"{kind} {key}", where, shown.get(key, "none"), expected.get(key, "none"))


def _run_tags(where: str, run: RunRecord, expected: Mapping[str, str]) -> Iterator[str]:
    """Tags of ours, and the description; `mlflow.` tags are MLflow's own, others are people's."""
    ours = {key: value for key, value in run.tags.items() if _ours(key) and key not in _OF_PROCESS}
    yield from _values("tag", where, ours, expected)
    if run.tags.get(_NOTE):
        yield _differs("description", where, run.tags[_NOTE], "none")


def _version_tags(version: Version, manifest: Mapping[str, Any]) -> Iterator[str]:
    expected = {
        KEY_TAG: str(manifest["model"]["key"]),
        GATE_TAG: "passed" if manifest["gate"]["passed"] else "rejected",
        **{f"{OBJECT_TAG}{role}": str(entry["md5"]) for role, entry in manifest["objects"].items()},
    }
    ours = {
        key: value for key, value in version.tags.items() if _ours(key) and key not in (MANIFEST_TAG, _OF_SIGNATURE)
    }
    yield from _values("tag", version.uri, ours, expected)


def _data(run: RunRecord) -> dict[str, str]:
    return {name: f"{digest} ({context})" for name, (digest, context) in run.datasets.items()}


def _expected_data(manifest: Mapping[str, Any]) -> dict[str, str]:
    roles = {entry["path"]: role for role, entry in manifest["objects"].items()}
    return {path: f"{digest} ({roles.get(path, 'lineage')})" for path, digest in all_paths(manifest).items()}


def _ours(key: str) -> bool:
    return key.startswith(_OURS)


def _differs(what: str, where: str, shown: object, signed: object) -> str:
    return f"{what} of {where}: MLflow shows {_short(shown)}, the signed manifest says {_short(signed)}."


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= _MOST else f"{text[:_MOST]}… ({len(text)} characters)"
