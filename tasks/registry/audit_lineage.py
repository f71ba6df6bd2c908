"""Verb of the audit: from a model down to its raw feedback, every object re-hashed, every signature verified.

`tasks.registry.trace_lineage` walks the other way, from a record, a person or a hash up to the models that rest on it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from sqlalchemy import select

from plumbline.data_contracts.artifact import MANIFEST
from plumbline.data_contracts.errors import SignatureError
from plumbline.data_contracts.verification import HashCheck
from plumbline.tasks.params.operations import OperationsParams
from plumbline.tasks.params.registry import RegistryParams
from plumbline.tasks.registry.ledger.chain import read_ledger
from plumbline.tasks.registry.ledger.ledger import history, moved_outside, verify_chain
from plumbline.tasks.registry.lineage.build import DescribedVersion, build_graph
from plumbline.tasks.registry.lineage.graph import SCHEMA, SCHEMA_VERSION, Graph
from plumbline.tasks.registry.lineage.in_use import in_use
from plumbline.tasks.registry.lineage.tree import render_graph, render_timeline
from plumbline.tasks.registry.signing.keys import verifying_key
from plumbline.tasks.registry.store.client import Store
from plumbline.tasks.registry.store.lookup import registered_at
from plumbline.tasks.registry.versions.manifest import all_paths, broken_links
from plumbline.tasks.registry.versions.record import check_record
from plumbline.tasks.registry.versions.registered import MANIFEST_TAG, StoredFiles, Version, resolve
from plumbline.tasks.storage.database import read_database, reading
from plumbline.tasks.storage.database.location import find_location
from plumbline.tasks.storage.database.outbox_tables import METADATA, OUTBOX
from plumbline.tasks.storage.versioning.git import why_unsound
from plumbline.tasks.storage.versioning.objects import ObjectStore
from plumbline.tasks.storage.versioning.tombstones import load_tombstones

LEDGER = "promotion ledger"
RECORD = "record in MLflow"
_AS_SIGNED = "as the signed manifest says"
_WHOLE = "an unbroken, signed chain"


@dataclass(frozen=True, slots=True)
class AuditReport:
    """The findings of an audit of one version.

    `objects`: a dict per copy with name, kind, hash, where, found, ok. `verified` is None if nothing was re-hashed
    and nothing else is wrong. `notes` are worth knowing and break nothing; `moved_from` is where the workspace lay
    before, if it was moved or copied. `timeline`: every move of an alias of the
    model, oldest first. `lineage` is the graph, in the schema of `tasks.registry.lineage.graph`.
    """

    model_uri: str
    verified: bool | None
    objects: list[dict[str, Any]]
    problems: list[str]
    notes: list[str] = field(default_factory=list)
    moved_from: str | None = None
    timeline: list[dict[str, Any]] = field(default_factory=list)
    lineage: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AuditedVersion:
    """An audit with what it was made from, for renderers. `graph` is None if the manifest cannot be trusted.

    `manifest` is without the stages that were switched off.
    """

    report: AuditReport
    about: DescribedVersion
    manifest: Mapping[str, Any]
    graph: Graph | None


def audit_model(
    root: Path,
    uri: str,
    params: RegistryParams,
    operations: OperationsParams | None = None,
    *,
    rehash: bool = True,
) -> AuditReport:
    """Walk a version to its raw feedback and re-hash every object it names, each copy of it.

    Raises `RegistryError` when there is no such version.
    """
    return audit_version(root, uri, params, operations, rehash=rehash).report


def audit_version(
    root: Path,
    uri: str,
    params: RegistryParams,
    operations: OperationsParams | None = None,
    *,
    rehash: bool = True,
) -> AuditedVersion:
    """As `audit_model`, with graph and manifest. Without `rehash` only the manifest's own hash is checked."""
    store = Store(root, params, read_only=True)
    version = resolve(store, uri)
    stored = StoredFiles(store, version)
    pinned = stored.check_manifest()
    if not pinned.ok:
        return _distrust(version, pinned)
    manifest, checks = stored.manifest(), [pinned]
    moved_from = find_location(root).moved_from
    timeline, outside, ledger = _operations(root, store, operations or OperationsParams(), rehash)
    checks += ledger
    shown = check_record(store, version, manifest)
    moved, notes = _moved(outside, version.number if timeline else None)
    shown.problems += moved
    if rehash:
        found, erased = _apart(_check_everything(root, stored, manifest), _tombstones(root, params))
        checks += found
        notes += erased
    about = _describe(store, version, timeline, [*checks, _record_row(shown.problems)] if rehash else [])
    about = replace(about, trigger=_trigger(root, operations or OperationsParams(), manifest))
    problems = [check.problem() for check in checks if not check.ok] + shown.problems + broken_links(manifest)
    if rehash:
        problems += _unlinked_artifacts(manifest, ObjectStore(root), checks)
    verified = False if problems else (True if rehash else None)
    shown_manifest = in_use(manifest)
    graph = build_graph(shown_manifest, about)
    if rehash or shown.problems:
        checks.append(_record_row(shown.problems))
    rows = [{**asdict(check), "ok": check.ok} for check in checks]
    lineage = graph.as_dict(verified, problems)
    notes = [*notes, *shown.notes]
    if moved_from is not None:
        notes.append(f"moved: this workspace lay at {moved_from} and lies at {root.resolve()} now; all was read here.")
    report = AuditReport(version.uri, verified, rows, problems, notes, moved_from, timeline, lineage)
    return AuditedVersion(report, about, shown_manifest, graph)


def _distrust(version: Version, pinned: HashCheck) -> AuditedVersion:
    note = f"{pinned.problem()} Nothing it names can be trusted: the walk ends here."
    rows = [{**asdict(pinned), "ok": False}]
    about = DescribedVersion(version.uri, version.number, pinned.found or "", version.aliases, "")
    lineage = {"schema": SCHEMA, "version": SCHEMA_VERSION, "model_uri": version.uri, "verified": False}
    lineage |= {"problems": [note], "nodes": [], "edges": []}
    return AuditedVersion(AuditReport(version.uri, False, rows, [note], lineage=lineage), about, {}, None)


def _check_everything(root: Path, stored: StoredFiles, manifest: Mapping[str, Any]) -> list[HashCheck]:
    """Every copy of every object, and the signature over the version's files."""
    checks = stored.check_files(manifest["files"])
    try:
        checks += stored.check_signed()
    except SignatureError as error:  # no key to verify by
        checks.append(HashCheck("model.sig", "signature", "a signature that can be verified", "mlflow", str(error)))
    checks += [*_check_texts(manifest), *_check_commit(root, manifest)]
    objects = ObjectStore(root)
    for path, digest in all_paths(manifest).items():
        checks += objects.check_path(digest, path, "data") + objects.check_workspace(digest, path, "data")
    return checks


def _tombstones(root: Path, params: RegistryParams) -> dict[str, str]:
    """Hashes of erased objects, each with the erasure in words; of signed tombstones alone."""
    if not load_tombstones(root):
        return {}
    signed = load_tombstones(root, verifying_key(root, params).accepts)
    return {digest: tombstone.text for tombstone in signed for digest in tombstone.objects}


def _apart(checks: Iterable[HashCheck], erased: Mapping[str, str]) -> tuple[list[HashCheck], list[str]]:
    """Checks of what should be there, and a note for each object that was erased, and is missing for that reason."""
    kept, notes = [], dict[str, None]()
    for check in checks:
        if check.found is None and check.hash in erased:
            notes[f"{check.name}: {erased[check.hash]}"] = None
        else:
            kept.append(check)
    return kept, list(notes)


def _check_texts(manifest: Mapping[str, Any]) -> Iterator[HashCheck]:
    for name, entry in manifest["texts"].items():
        found = hashlib.sha256(entry["text"].encode()).hexdigest()
        yield HashCheck(name, "text", entry["sha256"], "manifest", found)


def _check_commit(root: Path, manifest: Mapping[str, Any]) -> Iterator[HashCheck]:
    commit = manifest["git"]["commit"]
    if commit is not None:
        wrong = why_unsound(root, commit)
        yield HashCheck("workspace commit", "commit", commit, "git", commit if wrong is None else wrong)


def _operations(
    root: Path, store: Store, params: OperationsParams, rehash: bool
) -> tuple[list[dict[str, Any]], Mapping[str, Mapping[str, str | None]], list[HashCheck]]:
    """The ledger's lines, aliases that it cannot explain, and whether its chain is whole."""
    engine = read_ledger(root, params)
    try:
        problems = verify_chain(engine, store) if rehash else []
        entries = history(engine, store.params.model_name)
        outside = moved_outside(engine, store)
    except SignatureError as error:
        problems, entries, outside = [str(error)], [], {}
    finally:
        engine.dispose()
    found = _WHOLE if not problems else " ".join(problems)
    checks = [HashCheck(LEDGER, "ledger", _WHOLE, "operations database", found)] if rehash or problems else []
    return [_line(entry) for entry in entries], outside, checks


def _moved(outside: Mapping[str, Mapping[str, str | None]], number: str | None) -> tuple[list[str], list[str]]:
    """Aliases moved in MLflow itself: problems of the version that MLflow or the ledger names, notes on others.

    `number` is None if there is no ledger: a program before it gave the aliases.
    """
    problems: list[str] = []
    notes: list[str] = []
    for alias, place in outside.items():
        text = (
            f"@{alias} was moved in MLflow itself: it names version {place['mlflow'] or 'none'}, the ledger says "
            f"{place['ledger'] or 'none'}. Nobody approved that on record."
        )
        (problems if number is not None and number in place.values() else notes).append(text)
    return problems, notes


def _record_row(problems: Sequence[str]) -> HashCheck:
    """One row for all that MLflow shows beside the files; what differs stands in the problems."""
    found = _AS_SIGNED if not problems else f"{len(problems)} differences"
    return HashCheck(RECORD, "record", _AS_SIGNED, "mlflow database", found)


def _trigger(root: Path, params: OperationsParams, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The outbox's record of the event that started the run; nothing for a run that a person started."""
    event = manifest.get("trigger_event_id")
    if not event:
        return {}
    engine = read_database(root, params, METADATA)
    try:
        columns = (OUTBOX.c.key, OUTBOX.c.kind, OUTBOX.c.subject, OUTBOX.c.created_at)
        with reading(engine) as connection:
            row = connection.execute(select(*columns).where(OUTBOX.c.event_id == event)).mappings().first()
    finally:
        engine.dispose()
    return {name: str(value) for name, value in row.items()} if row is not None else {}


def _line(entry: Any) -> dict[str, Any]:
    names = ("seq", "alias", "version", "previous", "action", "actor", "reason", "hash")
    line = {name: getattr(entry, name) for name in names}
    return {**line, "at": entry.at.isoformat(timespec="seconds"), "evidence": dict(entry.evidence)}


def _describe(
    store: Store, version: Version, timeline: list[dict[str, Any]], checks: Iterable[HashCheck]
) -> DescribedVersion:
    health: dict[str, bool] = {}
    for check in checks:
        for name in _ancestors("ledger" if check.name == LEDGER else check.name):
            health[name] = health.get(name, True) and check.ok
    return DescribedVersion(
        model_uri=version.uri,
        number=version.number,
        manifest_sha256=version.tags[MANIFEST_TAG],
        aliases=version.aliases,
        registered_at=registered_at(store, version.name, version.number).isoformat(timespec="seconds"),
        ledger=timeline,
        health=health,
    )


def _ancestors(name: str) -> Iterator[str]:
    """The name, the folders it lies in, and "" for the whole."""
    parts = name.rstrip("/").split("/")
    return ("/".join(parts[:end]) for end in range(len(parts) + 1))


def _unlinked_artifacts(
    manifest: Mapping[str, Any], objects: ObjectStore, checks: Iterable[HashCheck]
) -> Iterator[str]:
    """Artifacts of which DVC's version is not what the stage wrote (or, for the model, what was registered)."""
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


def render_audit(audited: AuditedVersion) -> RenderableType:
    """The audit as a tree for a terminal, then who moved which alias, then what is wrong."""
    report = audited.report
    parts: list[RenderableType] = [render_graph(audited.graph)] if audited.graph is not None else []
    if report.timeline:
        parts += ["", render_timeline(report.timeline, audited.about.number), ""]
    if report.problems:
        verdict = f"{len(report.problems)} problem(s)"
    else:
        verdict = "verified" if report.verified else "nothing re-hashed (--no-rehash)"
    table = Table(f"{report.model_uri}: {len(report.objects)} copies of objects checked, {verdict}", box=None)
    for note in report.notes:
        table.add_row(f"[yellow]{escape(note)}[/yellow]")
    for problem in report.problems:
        table.add_row(f"[red]CHANGED {escape(problem)}[/red]")
    return Group(*parts, table)
