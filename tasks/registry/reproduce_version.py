"""Verb: make a registered version again, from its raw data, and compare every stage with what was registered.

1. The version is restored into a folder (`tasks.registry.restore_version`): raw data, params, graph.
2. Each stage runs again in its own process, in pipeline order, on what the stages before it have just written. Neither
   DVC's cache nor its run-cache is asked: nothing is reused.
3. Every file that a stage wrote is re-hashed and compared with the recorded hash; where it differs, by how much.

A stage that differs after another one did follows from it, as far as this can tell; the first one is the finding. A
killed reproduction in a folder of its own goes on after its last compared stage.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from plumbline.data_contracts.artifact import MANIFEST, read_artifact, write_json
from plumbline.data_contracts.errors import UsageError
from plumbline.data_contracts.inner_paths import holds_content
from plumbline.data_contracts.verification import HashCheck
from plumbline.tasks.params.registry import RegistryParams
from plumbline.tasks.params.section import Section
from plumbline.tasks.pipeline.isolation import run_isolated
from plumbline.tasks.pipeline.stage import Stage, StageRecord, fill
from plumbline.tasks.pipeline.watch import watch
from plumbline.tasks.registry.lineage.differences import compare_environments, compare_files
from plumbline.tasks.registry.restore_version import restore_version
from plumbline.tasks.registry.signing.keys import verifying_key
from plumbline.tasks.registry.store.client import Store
from plumbline.tasks.registry.versions.manifest import environment
from plumbline.tasks.registry.versions.registered import MANIFEST_TAG, StoredFiles, resolve
from plumbline.tasks.storage.versioning.git import program_identity
from plumbline.tasks.storage.versioning.objects import ObjectStore, check_tree

STATE = "reproduction.json"


@dataclass(frozen=True, slots=True)
class Reproduction:
    """A version restored to be made again. `done` holds the outcome of every stage compared so far."""

    source: Path
    folder: Path
    kept: bool
    model_uri: str
    manifest: Mapping[str, Any]
    done: dict[str, dict[str, Any]]

    @property
    def workspace(self) -> Path:
        """The restored workspace."""
        return self.folder / "workspace"


@dataclass(frozen=True, slots=True)
class ReproductionReport:
    """`stages`: {"stage", "equal", "files", "follows", "differences"} each; `first` is the first that differs."""

    model_uri: str
    equal: bool
    first: str | None
    stages: list[dict[str, Any]]
    environment: list[str]
    folder: str | None


def open_reproduction(root: Path, uri: str, params: RegistryParams, to: Path | None) -> Reproduction:
    """Restore a version to be made again, or find the folder where that was begun.

    Raises `UsageError` when the folder holds something else, and what `restore_version` raises.
    """
    store = Store(root, params, read_only=True)
    version = resolve(store, uri)
    digest = version.tags[MANIFEST_TAG]
    folder = to or root / ".plumbline" / "reproduce" / digest[:16]
    state = folder / STATE
    begun = orjson.loads(state.read_bytes()) if state.is_file() else None
    if begun is None and holds_content(folder):
        raise UsageError(
            f"{folder}: expected a new or empty folder, or a reproduction begun there; found other content."
        )
    if begun is not None and begun["manifest_sha256"] != digest:
        raise UsageError(f"{folder}: a reproduction of {begun['model_uri']} was begun there. Choose another folder.")
    if begun is None:
        folder.mkdir(parents=True, exist_ok=True)
        begun = {"model_uri": version.uri, "manifest_sha256": digest, "done": {}}
        write_json(state, begun)
    workspace = folder / "workspace"
    if not workspace.is_dir():
        for draft in folder.glob(".workspace.restore-*"):  # what a kill left
            shutil.rmtree(draft)
        restore_version(root, version.uri, workspace, params)
    stored = StoredFiles(store, version)
    stored.require_signed(verifying_key(root, params))  # again: a reproduction that is resumed restores nothing
    manifest = stored.manifest()
    return Reproduction(root, folder, to is not None, version.uri, manifest, begun["done"])


def reproduce_version(
    reproduction: Reproduction, stages: Sequence[Stage], load_params: Callable[[Path], Section]
) -> ReproductionReport:
    """Run every stage of the version again and compare. Stages come in pipeline order; raises what a stage raises.

    The folder is removed where everything was equal and nobody asked for it by name.
    """
    recorded = reproduction.manifest["stages"]
    params = load_params(reproduction.workspace)
    outcomes: list[dict[str, Any]] = []
    redone: set[str] = set()  # outputs written by this call: what reads one has to run again too
    with tempfile.TemporaryDirectory(prefix="plumbline-reproduce-") as scratch:
        for stage in stages:
            if stage.name in recorded:
                outcomes.append(_again(reproduction, stage, params, outcomes, redone, Path(scratch)))
    first = next((outcome["stage"] for outcome in outcomes if not outcome["equal"]), None)
    absent = sorted(recorded.keys() - {stage.name for stage in stages})
    here = compare_environments(reproduction.manifest["environment"], environment())
    notes = [*here, *_program(reproduction.manifest), *(f"stage {name}: this program has none" for name in absent)]
    equal = first is None and not absent
    if equal and not reproduction.kept:
        shutil.rmtree(reproduction.folder)
    folder = None if equal and not reproduction.kept else str(reproduction.folder)
    return ReproductionReport(reproduction.model_uri, equal, first or (absent or [None])[0], outcomes, notes, folder)


def _again(
    reproduction: Reproduction,
    stage: Stage,
    params: Section,
    before: Sequence[Mapping[str, Any]],
    redone: set[str],
    scratch: Path,
) -> dict[str, Any]:
    """Run one stage and compare it, unless that was done before a kill and its output still is what it was."""
    root, known = reproduction.workspace, reproduction.done.get(stage.name)
    deps = reproduction.manifest["stages"][stage.name]["deps"]
    stage = replace(stage, deps=_recorded_only(stage, deps, params))
    watch().started(stage)
    if known is None or known["artifact"] != _digest(root / stage.out) or redone & deps.keys():
        log = root / ".plumbline" / "logs" / f"{stage.name}.log"
        run_isolated(stage, root, params, log, watch().progress(stage))
        known = _compare(reproduction, stage, scratch)
        redone.add(stage.out)
        known["follows"] = [outcome["stage"] for outcome in before if not outcome["equal"] and outcome["out"] in deps]
        reproduction.done[stage.name] = known
        state = {"model_uri": reproduction.model_uri, "manifest_sha256": _pin(reproduction), "done": reproduction.done}
        write_json(reproduction.folder / STATE, state)
    watch().finished(stage, StageRecord(stage.name, 0.0, False, read_artifact(root / stage.out)))
    return known


def _recorded_only(stage: Stage, recorded: Collection[str], params: Section) -> dict[str, str]:
    """The inputs that the version's graph had: an older program's stage did not read those that came later."""
    return {name: path for name, path in stage.deps.items() if fill(path, params) in recorded}


def _pin(reproduction: Reproduction) -> str:
    begun: dict[str, str] = orjson.loads((reproduction.folder / STATE).read_bytes())
    return begun["manifest_sha256"]


def _digest(path: Path) -> str | None:
    return read_artifact(path).digest if (path / MANIFEST).is_file() else None


def _compare(reproduction: Reproduction, stage: Stage, scratch: Path) -> dict[str, Any]:
    objects = ObjectStore(reproduction.source)
    digest = reproduction.manifest["stages"][stage.name]["outs"][stage.out]["md5"]
    files = objects.files(digest)
    checks = check_tree(reproduction.workspace / stage.out, files, stage.out, "data", "made again")
    wrong = [check for check in checks if not check.ok]
    differences = [_difference(reproduction, objects, files, check, stage.out, scratch) for check in wrong]
    return {
        "stage": stage.name,
        "out": stage.out,
        "equal": not wrong,
        "files": len(files),
        "artifact": _digest(reproduction.workspace / stage.out),
        "differences": differences,
    }


def _difference(
    reproduction: Reproduction,
    objects: ObjectStore,
    files: Mapping[str, str],
    check: HashCheck,
    out: str,
    scratch: Path,
) -> dict[str, Any]:
    relative = check.name.removeprefix(f"{out}/")
    found = reproduction.workspace / check.name
    if relative not in files or not found.is_file():
        return {"file": relative, "kind": "missing" if relative in files else "extra"}
    recorded = scratch / "recorded"
    objects.fetch(files[relative], recorded)
    return compare_files(relative, recorded, found)


def _program(manifest: Mapping[str, Any]) -> list[str]:
    then, here = manifest["program"], program_identity()
    return [
        f"program {name}: {then.get(name)} then, {here.get(name)} here"
        for name in ("version", "git_commit", "source_sha256")
        if then.get(name) != here.get(name)
    ]


def render_reproduction(report: ReproductionReport) -> RenderableType:
    """The comparison as a table for a terminal, then what differs and what the environments have not in common."""
    table = Table("stage", "", "files", "by how much", box=None, title=report.model_uri)
    for outcome in report.stages:
        mark = "[green]equal[/green]" if outcome["equal"] else "[red]differs[/red]"
        note = f"reads {', '.join(outcome['follows'])}, which differs; " if outcome["follows"] else ""
        words = "; ".join(_words(difference) for difference in outcome["differences"][:3])
        more = len(outcome["differences"]) - 3
        tail = f"; and {more} more files" if more > 0 else ""
        table.add_row(outcome["stage"], mark, str(outcome["files"]), escape(f"{note}{words}{tail}"))
    notes = Table(box=None, show_header=False)
    verdict = "[green]reproduced: every file of every stage is equal[/green]"
    notes.add_row(verdict if report.equal else f"[red]first difference: stage {report.first}[/red]")
    for line in report.environment[:20]:
        notes.add_row(escape(f"environment: {line}"))
    if len(report.environment) > 20:
        notes.add_row(f"environment: and {len(report.environment) - 20} more differences")
    if report.folder is not None:
        notes.add_row(escape(f"kept in {report.folder}"))
    return Group(table, "", notes)


def _words(difference: Mapping[str, Any]) -> str:
    name, kind = difference["file"], difference["kind"]
    if kind == "weights":
        return f"{name}: max |Δ| {difference['max_abs']:.3g}, relative norm {difference['relative_norm']:.3g}"
    if kind == "records":
        return f"{name}: {difference['missing']} of {difference['of']} lines gone, {difference['new']} new"
    if kind == "figures" and difference["largest"]:
        top = difference["largest"][0]
        return f"{name}: {difference['differing']} figures, {top['key']} {top['recorded']} -> {top['found']}"
    return f"{name}: {kind}"
