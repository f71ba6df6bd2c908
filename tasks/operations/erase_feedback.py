"""Verb: erase feedback for good, everywhere that can be reached, with a signed record that it was erased.

1. Find the rows, every place that holds their texts, and the versions that used them. Nothing is changed yet.
2. Write the journal: from here on a rerun completes what a crash left.
3. Put each batch without its erased rows in the place of the old one, and the signed tombstone beside it.
4. Delete objects from DVC's cache and remote; outputs, caches and lines of logs; captured traffic.
5. Add a line to the ledger.
6. Search everything again. If nothing is left, the journal goes; else it stays, and the report names what is left.

`plumbline withdraw` sets feedback aside for later runs and keeps it. This deletes it.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from plumbline.data_contracts.errors import CheckFailed, PlumblineError, UsageError
from plumbline.data_contracts.interactions import Interaction
from plumbline.tasks.data.feedback import removal
from plumbline.tasks.data.feedback.removal import Found
from plumbline.tasks.data.feedback.validate import NamedBatch, raw_batches
from plumbline.tasks.data.feedback.withdrawals import Withdrawal, keep_withdrawal, load_withdrawals
from plumbline.tasks.data.ingest_feedback import raw_to_change
from plumbline.tasks.data.validate_feedback import RAW
from plumbline.tasks.operations.erasure.journal import Journal, Request, drop_journal, keep_journal, read_journal
from plumbline.tasks.operations.erasure.needles import LEAST, Searcher, named, needles_of
from plumbline.tasks.operations.erasure.places import Hits, remove_files, remove_objects, search
from plumbline.tasks.operations.serving import log
from plumbline.tasks.params.whole import Params
from plumbline.tasks.registry.index_dependents import INDEXED, open_index
from plumbline.tasks.registry.ledger.ledger import open_ledger, record_erasure
from plumbline.tasks.registry.lineage.dependents import bare
from plumbline.tasks.registry.signing.keys import signing_key
from plumbline.tasks.registry.store.client import Store
from plumbline.tasks.registry.trace_lineage import USES
from plumbline.tasks.registry.versions.listing import live_aliases
from plumbline.tasks.storage.database import open_database
from plumbline.tasks.storage.database.sqlite import compact
from plumbline.tasks.storage.versioning.objects import ObjectStore, md5_of
from plumbline.tasks.storage.versioning.tombstones import ErasedLines, Tombstone, keep_tombstone, record_name
from plumbline.tasks.storage.versioning.workspace import Versions

LARGE_SHARE = 0.1
"""Share of all rows from which on a pattern has to be confirmed by its own option."""

_IDS = ("id", "record_id", "given_id", "into")
_WORLD = "data/world"
_LONGEST_REASON = 1000
_SHOWN = 5
_USES = {**USES, "quarantine": USES["quarantined"], "unpaired": USES["train"]}  # by the file of a curated set


@dataclass(frozen=True, slots=True)
class ErasureReport:
    """An erasure: what it removes or removed, who used it, and what is left.

    `batches`: {"old", "new", "lines"}. `objects`: how many in each store. `shared`: texts that other rows have too, and
    which stay there. `short`: texts too short to be looked for outside of the raw store. `versions`: a dict per
    registered version and file. `beyond`: what no command erases. `left`: where the last search found something.
    """

    what: str
    done: bool
    rows: int
    share: float
    batches: list[dict[str, Any]] = field(default_factory=list)
    objects: dict[str, int] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    traffic: int = 0
    shared: int = 0
    short: int = 0
    versions: list[dict[str, Any]] = field(default_factory=list)
    retrain: list[str] = field(default_factory=list)
    beyond: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    tombstone: str = ""


Confirm = Callable[[ErasureReport], bool]


def erase(
    root: Path, params: Params, request: Request, *, reason: str, by: str, confirm: Confirm, large: bool = False
) -> ErasureReport:
    """Erase what is requested, once `confirm` says yes to the plan; a plan that is refused changes nothing.

    Call while no run is under way. An erasure that was cut off is completed first. `large`: a pattern may match more
    than a tenth of all rows. Raises `UsageError` for an unknown name, `VersioningError` if DVC's remote cannot be
    reached, `CheckFailed` if the last search found something, `SignatureError` without a key to sign by.
    """
    root, reason = root.resolve(), _reason(reason)
    with raw_to_change(root):
        if (journal := read_journal(root)) is not None:
            done = _complete(root, params, journal)
            if journal.request == request:
                return done
        journal = _plan(root, params, request, reason, by, large=large)
        report = ErasureReport(**journal.report)
        if not confirm(report):
            return report
        keep_journal(root, journal)
        return _complete(root, params, journal)


def resume(root: Path, params: Params) -> ErasureReport:
    """Complete an erasure that was cut off, or that found something left. Raises `UsageError` if there is none."""
    root = root.resolve()
    with raw_to_change(root):
        if (journal := read_journal(root)) is None:
            raise UsageError(f"{root}: no erasure was cut off. Name what to erase.")
        return _complete(root, params, journal)


def _reason(text: str) -> str:
    text = " ".join(text.split()).rstrip(".")
    if not text or len(text) > _LONGEST_REASON or not text.isprintable():
        raise UsageError(f"--reason: expected 1 to {_LONGEST_REASON} printable characters, found {len(text)}. Say why.")
    return text


# the plan


def _plan(root: Path, params: Params, request: Request, reason: str, by: str, *, large: bool) -> Journal:
    key = signing_key(root, params.registry)
    batches = raw_batches(root / RAW, within=root)
    found = removal.find_rows(batches, _WANTED[request.kind](request.value))
    needles, shared = _needles(root, batches, found, request)
    searcher = Searcher(needles)
    traffic = list(_traffic(root, params, searcher, request))
    if not found.erased and not traffic:
        raise UsageError(_unknown(batches, request))
    _require_small(request, found, large=large)
    hits = search(root, searcher)
    erased = [_without(root, file, path, found) for _, file, path in batches if found.lines.get(file)]
    objects = {digest for digests in hits.objects.values() for digest in digests}
    objects |= {md5_of(path) for _, file, path in batches if found.lines.get(file)}
    unsigned = Tombstone(
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        by=by,
        reason=reason,
        batches=tuple(erased),
        objects=tuple(sorted(objects)),
        records=tuple(sorted(record_name(name) for name in {*found.ids, *found.contents})),
    )
    tombstone = replace(unsigned, signature=key.sign(unsigned.signed))
    report = _report(root, params, request, found, tombstone, hits, len(traffic), shared)
    places = {name: list(getattr(hits, name)) for name in ("outputs", "caches", "logs", "databases")}
    return Journal(request, tombstone, tuple(sorted(needles)), tuple(traffic), places, asdict(report))


_WANTED: dict[str, Callable[[str], removal.Wanted]] = {
    "record": removal.wanted_record,
    "annotator": removal.wanted_annotator,
    "matching": removal.wanted_text,
}
KINDS = tuple(_WANTED)
"""Kinds of requests."""


def _needles(root: Path, batches: Sequence[NamedBatch], found: Found, request: Request) -> tuple[set[bytes], int]:
    """The needles of the rows to erase, without those that rows have which stay; and how many those are."""
    needles = needles_of(found.texts)
    for record in found.ids:
        needles |= named(_IDS, record)
    if request.kind == "annotator":
        needles |= named(("annotator",), request.value)
    elif request.kind == "matching":
        needles |= needles_of([request.value])
    searcher = Searcher(needles)
    shared = searcher.shared_with(removal.kept_lines(batches, found))
    for path in sorted((root / _WORLD).rglob("*.jsonl")):
        shared |= searcher.shared_with(path.read_bytes().splitlines())
    return needles - shared, len(shared)


def _traffic(root: Path, params: Params, searcher: Searcher, request: Request) -> Iterator[str]:
    """Captured interactions that hold an erased text, or the pattern."""
    engine = open_database(root, params.operations, log.METADATA)
    pattern = removal.compiled(request.value) if request.kind == "matching" else None
    named = (request.value, f"interaction-{request.value}") if request.kind == "record" else ()
    try:
        for item, _ in log.interactions(engine):
            found = (searcher.found_in(text.encode()) or (pattern and pattern.search(text)) for text in _spoken(item))
            if item.id in named or f"interaction-{item.id}" in named or any(found):
                yield item.id
    finally:
        engine.dispose()


def _spoken(item: Interaction) -> Iterator[str]:
    yield from (turn.content for turn in item.prompt)
    yield from (answer.text for answer in item.answers)


def _without(root: Path, file: str, path: Path, found: Found) -> ErasedLines:
    data, lines = removal.without_lines(path, found.lines[file]), tuple(sorted(found.lines[file]))
    digest = hashlib.sha256(data).hexdigest() if data else None
    new = (path.parent / f"{digest[:16]}.jsonl").relative_to(root).as_posix() if digest else None
    return ErasedLines(file, hashlib.sha256(path.read_bytes()).hexdigest(), new, digest, lines)


def _require_small(request: Request, found: Found, *, large: bool) -> None:
    share = found.erased / max(found.rows, 1)
    if request.kind == "matching" and not large and found.erased > 1 and share > LARGE_SHARE:
        raise UsageError(
            f"--matching {request.value}: expected a pattern that matches at most {LARGE_SHARE:.0%} of all rows, found "
            f"{found.erased} of {found.rows} ({share:.0%}). Nothing was erased. Name it more closely, or add --yes-all."
        )


def _unknown(batches: Sequence[NamedBatch], request: Request) -> str:
    """The error for a name that no row has, with names that are near."""
    text = f"--{request.kind} {request.value}: no feedback and no captured traffic has it. Nothing was erased."
    if request.kind == "matching":
        return text
    names: set[str] = set()
    for _, row in removal.all_rows(batches):
        names.update(removal.ids_of(row) if request.kind == "record" else removal.people_of(row))
    near = difflib.get_close_matches(request.value, names, n=_SHOWN, cutoff=0.5)
    return f"{text} Did you mean {', '.join(near)}?" if near else text


def _report(
    root: Path,
    params: Params,
    request: Request,
    found: Found,
    tombstone: Tombstone,
    hits: Hits,
    traffic: int,
    shared: int,
) -> ErasureReport:
    versions, problems = _versions(root, params, set(tombstone.objects))
    trained = sorted({row["model_uri"] for row in versions if row["use"] == USES["train"]})
    return ErasureReport(
        what=f"{request.kind} {request.value}",
        done=False,
        rows=found.erased,
        share=found.erased / max(found.rows, 1),
        batches=[{"old": each.old, "new": each.new, "lines": list(each.lines)} for each in tombstone.batches],
        objects={where: len(digests) for where, digests in hits.objects.items()},
        removed=[*hits.outputs, *hits.caches, *hits.logs],
        traffic=traffic,
        shared=shared,
        short=sum(len(text.encode()) < LEAST for text in found.texts),
        versions=versions,
        retrain=trained,
        beyond=_beyond(root, request, hits, trained),
        problems=problems,
        tombstone=tombstone.digest,
    )


def _versions(root: Path, params: Params, objects: set[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Registered versions whose datasets have a file that is to be deleted, with their use of it."""
    store, sets, name = Store(root, params.registry, read_only=True), ObjectStore(root), params.registry.model_name
    index, problems = open_index(root, store, params.registry)
    by_number = {number: alias for alias, number in live_aliases(store, name).items()}
    versions = []
    for digest, role in index.datasets(name):
        try:
            listing = sets.listing(f"{digest}.dir")
        except PlumblineError as error:
            problems.append(f"{INDEXED[role]} {digest} could not be read: {error}")
            continue
        files = [file.removesuffix(".jsonl") for file, md5 in listing.items() if md5 in objects]
        uses = {_USES[file] for file in files if role == "curated" and file in _USES}
        for dependent in index.resting_on(name, "accountable", bare(digest)):
            uri, alias = f"models:/{name}/{dependent.number}", by_number.get(dependent.number)
            versions += [{"model_uri": uri, "alias": alias, "use": use, "dataset": digest} for use in sorted(uses)]
    return versions, problems


def _beyond(root: Path, request: Request, hits: Hits, trained: Sequence[str]) -> list[str]:
    """What no command erases, in words."""
    own = ObjectStore(root).shared_remote
    found = [f"the weights of {uri}: they learned from it; retrain, promote, then delete it" for uri in trained]
    found += [f"{name}: MLflow's signed record of a version quotes it" for name in hits.kept]
    found += [f"copies of {own} that its host keeps (snapshots, older versions)"] if own is not None else []
    if request.kind == "annotator":
        found.append(f"the name {request.value} in signed manifests of versions: how many rows it judged, none of them")
    return [*found, "backups, clones and exports of this workspace, and the files that were ingested"]


# the steps


def _complete(root: Path, params: Params, journal: Journal) -> ErasureReport:
    """Every step from the journal on; each may be repeated."""
    for step in STEPS:
        step(root, params, journal)
    left = _left(root, journal)
    report = replace(ErasureReport(**journal.report), done=not left, left=left)
    if left:
        raise LeftOver(report)
    drop_journal(root)
    return report


class LeftOver(CheckFailed):
    """The last search of an erasure found something."""

    def __init__(self, report: ErasureReport) -> None:
        self.report = report
        super().__init__(
            f"erasure of {report.what}: expected no trace of it, found it in {', '.join(report.left[:_SHOWN])}"
            f"{' and more' if len(report.left) > _SHOWN else ''}. What could be erased was. Remove these by hand "
            f"(services that use a database: `plumbline down`), then `plumbline erase --resume` searches again. Until "
            f"then .plumbline/erasure.json keeps the texts to look for, and no run starts."
        )


def _left(root: Path, journal: Journal) -> list[str]:
    return search(root, Searcher(journal.needles)).left


def erase_raw(root: Path, params: Params, journal: Journal) -> None:
    """Step: the batches, withdrawals of them, and the tombstone."""

    def change() -> None:
        for batch in journal.tombstone.batches:
            _exchange(root, batch)
        keep_tombstone(root, journal.tombstone)

    Versions(root).retrack(RAW, change)


def _exchange(root: Path, batch: ErasedLines) -> None:
    old, new = root / batch.old, root / batch.new if batch.new else None
    known = load_withdrawals(root / RAW)
    standing = known.find("batch", batch.old)
    if standing is not None and batch.new and known.find("batch", batch.new) is None:
        keep_withdrawal(root / RAW, Withdrawal("batch", batch.new, standing.reason, standing.by, standing.at))
    if old.exists():
        removal.put_in_place(old, new, removal.without_lines(old, batch.lines))


def erase_objects(root: Path, params: Params, journal: Journal) -> None:
    """Step: objects of DVC's cache and remote."""
    remove_objects(root, set(journal.tombstone.objects))


def erase_files(root: Path, params: Params, journal: Journal) -> None:
    """Step: outputs of stages, caches and lines of logs."""
    hits = Hits(outputs=journal.hits["outputs"], caches=journal.hits["caches"], logs=journal.hits["logs"])
    remove_files(root, hits, Searcher(journal.needles))


def erase_databases(root: Path, params: Params, journal: Journal) -> None:
    """Step: captured traffic, and what deleted rows left in the files of databases."""
    engine = open_database(root, params.operations, log.METADATA)
    try:
        log.remove(engine, journal.traffic)
        if journal.request.kind == "annotator":
            log.remove_feedback_of(engine, journal.request.value)
    finally:
        engine.dispose()
    if journal.traffic or journal.hits["databases"]:
        names = {name.removesuffix("-wal").removesuffix("-shm") for name in journal.hits["databases"]}
        for name in sorted(names | {".plumbline/operations.db"}):
            if (root / name).is_file():
                compact(root / name)


def erase_on_record(root: Path, params: Params, journal: Journal) -> None:
    """Step: the line in the ledger, if there is a model."""
    engine = open_ledger(root, params.operations)
    try:
        record_erasure(engine, Store(root, params.registry), journal.tombstone)
    finally:
        engine.dispose()


STEPS = (erase_raw, erase_objects, erase_files, erase_databases, erase_on_record)
"""The steps after the journal, in order. Each is free to repeat."""
