"""Verbs of the audit: from a model down to its raw feedback, and from a record up to its models."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson
from rich.console import RenderableType
from rich.table import Table
from rich.tree import Tree

from data_contracts.artifact import MANIFEST
from data_contracts.errors import PlumblineError, RegistryError
from data_contracts.verification import HashCheck
from tasks.registry.client import Store
from tasks.registry.lineage import FILES, build_index, index_path, look_up, read_line
from tasks.registry.manifest import all_paths, broken_links
from tasks.registry.params import RegistryParams
from tasks.registry.versions import MANIFEST_TAG, OBJECT_TAG, StoredFiles, Version, all_versions, resolve
from tasks.versioning.git import commit_is_sound
from tasks.versioning.lock import current_hashes
from tasks.versioning.objects import ObjectStore

INDEXED = {"curated": "data/curated", "validated": "data/validated"}


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What an audit of one version found. `objects`: a dict per copy with name, kind, hash, where, found, ok."""

    model_uri: str
    verified: bool
    objects: list[dict[str, Any]]
    problems: list[str]
    tree: dict[str, Any]


@dataclass(frozen=True, slots=True)
class RecordReport:
    """Every dataset and model version that a record reached, used or set aside, and where it was read."""

    record: str
    found: bool
    origins: list[dict[str, Any]]
    datasets: list[dict[str, Any]]
    versions: list[dict[str, Any]]
    searched: int
    problems: list[str] = field(default_factory=list)


def audit_model(root: Path, uri: str, params: RegistryParams) -> AuditReport:
    """Walk a version to its raw feedback and re-hash every object it names, each copy of it.

    Raises `RegistryError` when there is no such version.
    """
    store = Store(root, params)
    version = resolve(store, uri)
    stored = StoredFiles(store, version)
    pinned = stored.check_manifest()
    if not pinned.ok:
        note = f"{pinned.problem()} Nothing it names can be trusted: the walk ends here."
        return _report(version, [pinned], [note], {"name": version.uri, "hash": "", "ok": False, "children": []})
    manifest = stored.manifest()
    checks = [pinned, *stored.check_files(manifest["files"]), *_check_texts(manifest), *_check_commit(root, manifest)]
    objects = ObjectStore(root)
    for path, digest in all_paths(manifest).items():
        checks += objects.check_path(digest, path, "data") + objects.check_workspace(digest, path, "data")
    problems = [check.problem() for check in checks if not check.ok]
    problems += broken_links(manifest) + list(_unlinked_artifacts(manifest, objects, checks))
    return _report(version, checks, problems, _tree(version, manifest, checks))


def _report(version: Version, checks: list[HashCheck], problems: list[str], tree: dict[str, Any]) -> AuditReport:
    rows = [{**asdict(check), "ok": check.ok} for check in checks]
    return AuditReport(version.uri, not problems, rows, problems, tree)


def _check_texts(manifest: Mapping[str, Any]) -> Iterator[HashCheck]:
    for name, entry in manifest["texts"].items():
        found = hashlib.sha256(entry["text"].encode()).hexdigest()
        yield HashCheck(name, "text", entry["sha256"], "manifest", found)


def _check_commit(root: Path, manifest: Mapping[str, Any]) -> Iterator[HashCheck]:
    commit = manifest["git"]["commit"]
    if commit is not None:
        yield HashCheck("workspace commit", "commit", commit, "git", commit if commit_is_sound(root, commit) else None)


def _unlinked_artifacts(
    manifest: Mapping[str, Any], objects: ObjectStore, checks: Iterable[HashCheck]
) -> Iterator[str]:
    """Where DVC's version of an artifact is not the artifact that the stage wrote (and, for the model, registered)."""
    broken = {check.hash for check in checks if not check.ok}
    for name, stage in manifest["stages"].items():
        for path, out in stage["outs"].items():
            if stage["artifact"] is None or out["md5"].removesuffix(".dir") in broken:
                continue
            digest = objects.files(out["md5"]).get(MANIFEST)
            if digest is None:
                yield f"{path}: stage {name} wrote an artifact, but the DVC version has no {MANIFEST}."
            elif (
                digest not in broken and hashlib.sha256(objects.read(digest)).hexdigest() != stage["artifact"]["digest"]
            ):
                yield f"{path}: the DVC version is another artifact than the one that stage {name} wrote."


def _tree(version: Version, manifest: Mapping[str, Any], checks: Iterable[HashCheck]) -> dict[str, Any]:
    """The walk as nested nodes {"name", "hash", "ok", "children"}, from the version to raw batches."""
    health: dict[str, bool] = {}
    for check in checks:
        for name in _ancestors(check.name):
            health[name] = health.get(name, True) and check.ok
    makers = {path: stage for stage in manifest["stages"].values() for path in stage["outs"]}
    paths, seen = all_paths(manifest), set[str]()

    def node(path: str) -> dict[str, Any]:
        children = []
        if path in makers and path not in seen:
            children = [node(dep) for dep in sorted(makers[path]["deps"])]
        elif path in manifest["tracked"] and path not in seen:
            batches = [batch for batch in manifest["raw_batches"] if batch["path"].startswith(f"{path}/")]
            children = [_leaf(batch["path"], batch["md5"], health) for batch in batches]
        again = path in seen and path in makers
        seen.add(path)
        digest = paths.get(path) or "recorded, not versioned"
        return {**_leaf(path, digest, health), "children": children, **({"again": True} if again else {})}

    files = [_leaf(name, entry["sha256"], health) for name, entry in sorted(manifest["files"].items())]
    texts = [_leaf(name, entry["sha256"], health) for name, entry in manifest["texts"].items()]
    roots = [node(manifest["objects"][role]["path"]) for role in ("policy", "gate") if role in manifest["objects"]]
    children = [
        {"name": "registered files", "hash": "", "ok": all(item["ok"] for item in files), "children": files},
        {"name": "texts in the manifest", "hash": "", "ok": all(item["ok"] for item in texts), "children": texts},
        *roots,
    ]
    return {
        "name": version.uri,
        "hash": version.tags[MANIFEST_TAG],
        "ok": all(check.ok for check in checks),
        "children": children,
    }


def _leaf(name: str, digest: str, health: Mapping[str, bool]) -> dict[str, Any]:
    return {"name": name, "hash": digest, "ok": health.get(name, True), "children": []}


def _ancestors(name: str) -> Iterator[str]:
    parts = name.rstrip("/").split("/")
    return ("/".join(parts[: end + 1]) for end in range(len(parts)))


def render_tree(report: AuditReport) -> RenderableType:
    """The audit as a tree for a terminal, with the problems below it."""
    tree = Tree(_label(report.tree))
    _grow(tree, report.tree["children"])
    verdict = "verified" if report.verified else f"{len(report.problems)} problem(s)"
    table = Table(f"{report.model_uri}: {len(report.objects)} copies of objects re-hashed, {verdict}", box=None)
    for problem in report.problems:
        table.add_row(f"[red]{problem}[/red]")
    grid = Table.grid()
    grid.add_row(tree)
    grid.add_row(table)
    return grid


def _grow(tree: Tree, nodes: Iterable[Mapping[str, Any]]) -> None:
    for node in nodes:
        _grow(tree.add(_label(node)), node["children"])


def _label(node: Mapping[str, Any]) -> str:
    mark = "[green]ok[/green]" if node["ok"] else "[red]CHANGED[/red]"
    note = " (above)" if node.get("again") else ""
    return f"{mark} {node['name']} [dim]{node['hash'][:20]}[/dim]{note}"


def index_datasets(root: Path, objects: Mapping[str, Mapping[str, Any]]) -> None:
    """Index the records of a version's datasets, so that `audit_record` finds them at once."""
    store = ObjectStore(root)
    for role in INDEXED:
        if role in objects:
            _index(root, store, objects[role]["md5"])


def _index(root: Path, objects: ObjectStore, digest: str) -> Path:
    path = index_path(root / ".plumbline" / "lineage", digest)
    if not path.is_file():
        with objects.local_files(digest, FILES) as files:
            build_index(files, path)
    return path


def audit_record(root: Path, record: str, params: RegistryParams) -> RecordReport:
    """List every dataset and model version that holds a record, and what became of it in each."""
    objects = ObjectStore(root)
    versions = all_versions(Store(root, params), params.model_name)
    datasets, users = _datasets(root, versions)
    rows, problems = [], []
    for digest, path in datasets.items():
        try:
            rows += [{"path": path, "md5": digest, **fate} for fate in _fates(root, objects, digest, record)]
        except PlumblineError as error:
            problems.append(f"{path} {digest} could not be searched: {error}")
    return RecordReport(
        record=record,
        found=bool(rows),
        origins=_distinct(row["origin"] for row in rows if row["origin"]),
        datasets=rows,
        versions=[use for row in rows for use in _uses(row, users[row["md5"]])],
        searched=len(datasets),
        problems=problems,
    )


def _datasets(root: Path, versions: Iterable[Version]) -> tuple[dict[str, str], dict[str, list[Version]]]:
    """Datasets of all versions and of the workspace: hash -> path, hash -> versions that name it."""
    datasets: dict[str, str] = {}
    users: dict[str, list[Version]] = {}
    for version in versions:
        for role, path in INDEXED.items():
            digest = version.tags.get(f"{OBJECT_TAG}{role}")
            if digest is not None:
                datasets[digest] = path
                users.setdefault(digest, []).append(version)
    present = current_hashes(root)
    for path in INDEXED.values():
        if path in present:
            datasets.setdefault(present[path], path)
            users.setdefault(present[path], [])
    return datasets, users


def _fates(root: Path, objects: ObjectStore, digest: str, record: str) -> Iterator[dict[str, Any]]:
    """What became of a record in one dataset: a dict per line of it."""
    places = look_up(_index(root, objects, digest), record)
    if not places:
        return
    with objects.local_files(digest, {place.file for place in places}) as files:
        for place in places:
            try:
                entry = read_line(files[place.file], place, record)
            except orjson.JSONDecodeError as error:
                raise RegistryError(f"{place.file} is not what was indexed ({error}); audit the model.") from error
            if entry is not None:
                yield _fate(place.file.removesuffix(".jsonl"), entry)


def _fate(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    fate = {"quarantine": "quarantined"}.get(name, name)
    origin = entry.get("origin") or {"file": entry.get("file"), "line": entry.get("line")}
    return {
        "fate": fate,
        "reason": entry.get("reason"),
        "into": entry.get("into"),
        "cluster": entry.get("cluster"),
        "origin": origin if origin.get("file") else None,
    }


_USES = {
    "train": "trained on",
    "validation": "selected with",
    "test": "evaluated on",
    "merged": "not used: merged into another record",
    "quarantined": "not used: quarantined",
}


def _uses(row: Mapping[str, Any], users: Iterable[Version]) -> Iterator[dict[str, Any]]:
    """How each version used the record; having been accepted says nothing yet, curation decides."""
    if row["fate"] not in _USES:
        return
    for version in users:
        yield {
            "model_uri": version.uri,
            "aliases": list(version.aliases),
            "passed": version.passed,
            "use": _USES[row["fate"]],
            "dataset": row["md5"],
        }


def _distinct(items: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({tuple(sorted(item.items())): item for item in items}.values())


def render_record(report: RecordReport) -> RenderableType:
    """A record's datasets and versions as a table for a terminal."""
    if not report.found:
        return f"Record {report.record}: in none of the {report.searched} datasets of this workspace and its models."
    table = Table("where", "hash or alias", "what became of it", box=None, title=f"Record {report.record}")
    for origin in report.origins:
        table.add_row(f"{origin['file']}, line {origin['line']}", "", "read here")
    for row in report.datasets:
        why = " ".join(str(row[name]) for name in ("reason", "into") if row[name])
        table.add_row(row["path"], row["md5"][:20], f"{row['fate']} {why}".strip())
    for use in report.versions:
        table.add_row(use["model_uri"], ", ".join(use["aliases"]), use["use"])
    for problem in report.problems:
        table.add_row(f"[red]{problem}[/red]")
    return table
