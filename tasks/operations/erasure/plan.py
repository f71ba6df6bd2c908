"""The plan of an erasure: the rows, every place that holds their texts, and the versions that used them."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from plumbline.data_contracts.errors import PlumblineError, UsageError
from plumbline.data_contracts.interactions import Interaction
from plumbline.tasks.data.feedback import removal
from plumbline.tasks.data.feedback.removal import Found
from plumbline.tasks.data.feedback.validate import NamedBatch, raw_batches
from plumbline.tasks.data.validate_feedback import RAW
from plumbline.tasks.operations.erasure.journal import ErasureRequest, Journal
from plumbline.tasks.operations.erasure.needles import LEAST, Searcher, named, needles_of
from plumbline.tasks.operations.erasure.places import Hits, search
from plumbline.tasks.params.whole import Params
from plumbline.tasks.registry.index_dependents import INDEXED, open_index
from plumbline.tasks.registry.lineage.dependents import bare
from plumbline.tasks.registry.signing.keys import signing_key
from plumbline.tasks.registry.store.client import Store
from plumbline.tasks.registry.trace_lineage import USES
from plumbline.tasks.registry.versions.listing import live_aliases
from plumbline.tasks.storage.versioning.objects import ObjectStore, md5_of
from plumbline.tasks.storage.versioning.tombstones import ErasedLines, Tombstone, record_name

LARGE_SHARE = 0.1
"""Share of all rows from which on a pattern has to be confirmed by its own option."""

_IDS = ("id", "record_id", "given_id", "into")
_WORLD = "data/world"
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


def plan(
    root: Path,
    params: Params,
    request: ErasureRequest,
    reason: str,
    by: str,
    interactions: Iterable[Interaction],
    *,
    large: bool,
) -> Journal:
    """The journal of an erasure, signed, with every place that it is to change; nothing is changed yet.

    `interactions`: the captured traffic. `large`: a pattern may match more than a tenth of all rows. Raises
    `UsageError` for a name that nothing has and for a pattern that matches too much, `VersioningError` if DVC's remote
    cannot be read, `SignatureError` without a key.
    """
    key = signing_key(root, params.registry)
    batches = raw_batches(root / RAW, within=root)
    found = removal.find_rows(batches, _WANTED[request.kind](request.value))
    needles, shared = _needles(root, batches, found, request)
    searcher = Searcher(needles)
    traffic = list(_traffic(interactions, searcher, request))
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


def _needles(
    root: Path, batches: Sequence[NamedBatch], found: Found, request: ErasureRequest
) -> tuple[set[bytes], int]:
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


def _traffic(interactions: Iterable[Interaction], searcher: Searcher, request: ErasureRequest) -> Iterator[str]:
    """Captured interactions that hold an erased text, or the pattern."""
    pattern = removal.compiled(request.value) if request.kind == "matching" else None
    named = (request.value, f"interaction-{request.value}") if request.kind == "record" else ()
    for item in interactions:
        found = (searcher.found_in(text.encode()) or (pattern and pattern.search(text)) for text in _spoken(item))
        if item.id in named or f"interaction-{item.id}" in named or any(found):
            yield item.id


def _spoken(item: Interaction) -> Iterator[str]:
    yield from (turn.content for turn in item.prompt)
    yield from (answer.text for answer in item.answers)


def _without(root: Path, file: str, path: Path, found: Found) -> ErasedLines:
    data, lines = removal.without_lines(path, found.lines[file]), tuple(sorted(found.lines[file]))
    digest = hashlib.sha256(data).hexdigest() if data else None
    new = (path.parent / f"{digest[:16]}.jsonl").relative_to(root).as_posix() if digest else None
    return ErasedLines(file, hashlib.sha256(path.read_bytes()).hexdigest(), new, digest, lines)


def _require_small(request: ErasureRequest, found: Found, *, large: bool) -> None:
    share = found.erased / max(found.rows, 1)
    if request.kind == "matching" and not large and found.erased > 1 and share > LARGE_SHARE:
        raise UsageError(
            f"--matching {request.value}: expected a pattern that matches at most {LARGE_SHARE:.0%} of all rows, found "
            f"{found.erased} of {found.rows} ({share:.0%}). Nothing was erased. Name it more closely, or add --yes-all."
        )


def _unknown(batches: Sequence[NamedBatch], request: ErasureRequest) -> str:
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
    request: ErasureRequest,
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


def _beyond(root: Path, request: ErasureRequest, hits: Hits, trained: Sequence[str]) -> list[str]:
    """What no command erases, in words."""
    own = ObjectStore(root).shared_remote
    found = [f"the weights of {uri}: they learned from it; retrain, promote, then delete it" for uri in trained]
    found += [f"{name}: MLflow's signed record of a version quotes it" for name in hits.kept]
    found += [f"copies of {own} that its host keeps (snapshots, older versions)"] if own is not None else []
    if request.kind == "annotator":
        found.append(f"the name {request.value} in signed manifests of versions: how many rows it judged, none of them")
    return [*found, "backups, clones and exports of this workspace, and the files that were ingested"]
