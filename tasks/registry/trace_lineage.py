"""Verb of the audit, upwards: from a record, batch, annotator, token, judge prompt, … to models.

The answer is every registered version that rests on it, with its live aliases and how it used it. What the derived
index says is compared with the registry before it is given (`tasks.registry.index_dependents`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import orjson
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from plumbline.data_contracts.errors import PlumblineError, RegistryError
from plumbline.tasks.params.registry import RegistryParams
from plumbline.tasks.registry.index_dependents import INDEXED, dataset_index, open_index
from plumbline.tasks.registry.lineage.dependents import Dependent, DependentsIndex, bare, require_hash
from plumbline.tasks.registry.lineage.records_index import (
    ANNOTATORS,
    BATCHES,
    PROMPTS,
    TOKENS,
    Place,
    look_up,
    names_of,
    read_line,
)
from plumbline.tasks.registry.store.client import Store
from plumbline.tasks.registry.versions.listing import live_aliases
from plumbline.tasks.storage.versioning.lock import current_hashes
from plumbline.tasks.storage.versioning.objects import ObjectStore
from plumbline.tasks.storage.versioning.tombstones import load_tombstones, record_name

Thing = Literal["batch", "annotator", "token", "judge_prompt", "dataset", "reward_model", "commit"]
USES = {
    "train": "trained on",
    "validation": "selected with",
    "test": "evaluated on",
    "merged": "not used: merged into another record",
    "quarantined": "not used: quarantined",
}
_FILE_USES = {**USES, "quarantine": "not used: quarantined"}


@dataclass(frozen=True, slots=True)
class RecordReport:
    """Every dataset and model version that a record reached, used or set aside, and where it was read.

    `erased`: erasures of it in words; it is in no dataset after those.
    """

    record: str
    found: bool
    origins: list[dict[str, Any]]
    datasets: list[dict[str, Any]]
    versions: list[dict[str, Any]]
    searched: int
    problems: list[str] = field(default_factory=list)
    erased: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class TraceReport:
    """Every version that rests on a thing: {"model_uri", "aliases", "passed", "use", "counts"}, oldest first."""

    kind: Thing
    key: str
    found: bool
    versions: list[dict[str, Any]]
    searched: int
    known: list[str]
    problems: list[str] = field(default_factory=list)


def trace(root: Path, kind: Thing, key: str, params: RegistryParams) -> TraceReport:
    """Every version that rests on a thing of this kind.

    `key` is a hash (or its first seven or more digits), a batch's path, the name of an annotator or token, or
    NAME@VERSION of a judge's prompt. Raises `UsageError` for a key that cannot be one.
    """
    store = Store(root, params, read_only=True)
    index, problems = open_index(root, store, params)
    aliases = _by_number(live_aliases(store, params.model_name))
    rows = list(_FINDERS[kind](index, params.model_name, key))
    versions = [
        {
            "model_uri": f"models:/{params.model_name}/{dependent.number}",
            "aliases": aliases.get(dependent.number, []),
            "passed": dependent.passed,
            "use": use,
            "counts": counts,
        }
        for dependent, use, counts in rows
    ]
    known = [] if versions else _known(index, params.model_name, kind)
    return TraceReport(kind, key, bool(versions), versions, index.size(params.model_name), known, problems)


Found = Iterator[tuple[Dependent, str, dict[str, int]]]


def _hashed(kind: str) -> Callable[[DependentsIndex, str, str], Found]:
    """Versions with an object of this hash among their parts."""

    def find(index: DependentsIndex, name: str, key: str) -> Found:
        for dependents in _by_version(index.resting_on(name, kind, require_hash(key))).values():
            labels = sorted({dependent.label for dependent in dependents})
            yield dependents[0], f"{_WORDS[kind]} ({', '.join(labels)})", {}

    return find


_WORDS = {"dataset": "made from it", "reward_model": "judged or trained by it", "commit": "made at it"}


def _batches(index: DependentsIndex, name: str, key: str) -> Found:
    """Versions that list the batch, or whose data have lines of it; the sample world's own files are found by path."""
    path_like = "/" in key
    digest = key if path_like else require_hash(key)
    dependents = index.resting_on(name, "batch", digest if path_like else digest[:16] if len(digest) > 32 else digest)
    paths = {dependent.label for dependent in dependents} | ({key} if path_like else set())
    counts = [index.contributions(BATCHES, path) for path in sorted(paths)]
    yield from _contributed(index, name, counts, dependents)


def _annotators(index: DependentsIndex, name: str, key: str) -> Found:
    yield from _contributed(index, name, [index.contributions(ANNOTATORS, key)], [])


def _tokens(index: DependentsIndex, name: str, key: str) -> Found:
    yield from _contributed(index, name, [index.contributions(TOKENS, key)], [])


def _prompts(index: DependentsIndex, name: str, key: str) -> Found:
    """Versions with a policy trained by the judge's ranking, or with data that it labelled."""
    dependents = index.resting_on(name, "judge_prompt", key if "@" in key else require_hash(key))
    labels = [whose for whose in index.names(PROMPTS, key) if whose.startswith(f"{key} ") or f" {key}" in whose]
    counts = [index.contributions(PROMPTS, whose) for whose in labels]
    yield from _contributed(index, name, counts, dependents, "judged by it in")


def _contributed(
    index: DependentsIndex,
    name: str,
    counts: list[dict[str, dict[str, int]]],
    dependents: list[Dependent],
    words: str = "lists it",
) -> Found:
    """Versions whose datasets have lines of a contributor, and those that name it without one."""
    named = _by_version(dependents)
    totals: dict[str, dict[str, int]] = {}
    first: dict[str, Dependent] = {}
    for contribution in counts:
        for dataset, files in contribution.items():
            for dependent in index.resting_on(name, "accountable", dataset):
                first.setdefault(dependent.number, dependent)
                total = totals.setdefault(dependent.number, {})
                for file, lines in files.items():
                    place = "refused" if (dependent.label, file) == ("validated", "quarantine") else file
                    total[place] = total.get(place, 0) + lines
    for number in sorted({*named, *totals}, key=int):
        found = totals.get(number, {})
        use = "; ".join(f"{words} for {lines} records" for words, lines in _spoken(found))
        label = ", ".join(sorted({dependent.label for dependent in named.get(number, ())}))
        yield (named.get(number) or [first[number]])[0], use or f"{words} {label}".strip(), found


def _spoken(found: Mapping[str, int]) -> list[tuple[str, int]]:
    spoken = [(_FILE_USES[file], found[file]) for file in _FILE_USES if file in found]
    refused = [("not used: refused by the contract", found["refused"])] if "refused" in found else []
    return spoken + refused or [("accepted, in no split", lines) for file, lines in found.items() if file == "accepted"]


_FINDERS: Mapping[Thing, Callable[[DependentsIndex, str, str], Found]] = {
    "batch": _batches,
    "annotator": _annotators,
    "token": _tokens,
    "judge_prompt": _prompts,
    "dataset": _hashed("dataset"),
    "reward_model": _hashed("reward_model"),
    "commit": _hashed("commit"),
}


def _known(index: DependentsIndex, name: str, kind: Thing) -> list[str]:
    named = {"annotator": ANNOTATORS, "token": TOKENS}
    return index.names(named[kind]) if kind in named else index.keys(name, kind)


def _by_version(dependents: Iterable[Dependent]) -> dict[str, list[Dependent]]:
    found: dict[str, list[Dependent]] = {}
    for dependent in dependents:
        found.setdefault(dependent.number, []).append(dependent)
    return found


def _by_number(aliases: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for alias, number in sorted(aliases.items()):
        found.setdefault(number, []).append(alias)
    return found


def audit_record(root: Path, record: str, params: RegistryParams) -> RecordReport:
    """List every dataset and model version that holds a record, with its outcome in each.

    An id that several files gave to different contents names several records: all are listed, the later ones under
    their contents' ids too, by which other datasets may name them.
    """
    objects, store = ObjectStore(root), Store(root, params, read_only=True)
    index, problems = open_index(root, store, params)
    aliases = _by_number(live_aliases(store, params.model_name))
    datasets = _datasets(root, index, params.model_name)
    rows, problems = _search(root, objects, datasets, [record], problems)
    others = sorted({row["record"] for row in rows} - {record})
    if others:
        rows, problems = _search(root, objects, datasets, [record, *others], problems)
    users = {row["md5"]: index.resting_on(params.model_name, "accountable", bare(row["md5"])) for row in rows}
    return RecordReport(
        record=record,
        found=bool(rows),
        origins=_distinct(row["origin"] for row in rows if row["origin"]),
        datasets=rows,
        versions=[use for row in rows for use in _uses(row, users[row["md5"]], params.model_name, aliases)],
        searched=len(datasets),
        problems=problems,
        erased=[each.text for each in load_tombstones(root) if record_name(record) in each.records],
    )


def _search(
    root: Path, objects: ObjectStore, datasets: Mapping[str, str], records: Iterable[str], problems: Iterable[str]
) -> tuple[list[dict[str, Any]], list[str]]:
    """The fates of records in every dataset, each line once; and what could not be searched, beside `problems`."""
    rows: dict[tuple[str, str, int], dict[str, Any]] = {}
    told = dict.fromkeys(problems)
    for digest, path in datasets.items():
        for record in records:
            try:
                for place, fate in _fates(root, objects, digest, record):
                    rows[digest, place.file, place.offset] = {"path": path, "md5": digest, **fate}
            except PlumblineError as error:
                told[f"{path} {digest} could not be searched: {error}"] = None
    return list(rows.values()), list(told)


def _datasets(root: Path, index: DependentsIndex, name: str) -> dict[str, str]:
    """Datasets of all versions and of the workspace: hash -> path."""
    datasets = {f"{digest}.dir": INDEXED[role] for digest, role in index.datasets(name)}
    present = current_hashes(root)
    return datasets | {present[path]: path for path in INDEXED.values() if path in present}


def _fates(root: Path, objects: ObjectStore, digest: str, record: str) -> Iterator[tuple[Place, dict[str, Any]]]:
    """The fates of a record in one dataset: a dict per line of it."""
    places = look_up(dataset_index(root, objects, digest), record)
    if not places:
        return
    with objects.local_files(digest, {place.file for place in places}) as files:
        for place in (place for place in places if place.file in files):  # others were erased
            try:
                entry = read_line(files[place.file], place, record)
            except orjson.JSONDecodeError as error:
                raise RegistryError(f"{place.file} is not what was indexed ({error}); audit the model.") from error
            if entry is not None:
                yield place, _fate(place.file.removesuffix(".jsonl"), entry)


def _fate(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    fate = {"quarantine": "quarantined"}.get(name, name)
    own = {name: entry.get(name) for name in ("file", "line", "senders")}
    origin = entry.get("origin") or {key: value for key, value in own.items() if value}
    return {
        "record": names_of(entry)[0],
        "fate": fate,
        "reason": entry.get("reason"),
        "into": entry.get("into"),
        "cluster": entry.get("cluster"),
        "annotator": entry.get("annotator"),
        "origin": origin if origin.get("file") else None,
    }


def _uses(
    row: Mapping[str, Any], users: Iterable[Dependent], name: str, aliases: Mapping[str, list[str]]
) -> Iterator[dict[str, Any]]:
    """Each version's use of the record; having been accepted says nothing yet, curation decides."""
    if row["fate"] not in USES:
        return
    for dependent in users:
        yield {
            "model_uri": f"models:/{name}/{dependent.number}",
            "aliases": aliases.get(dependent.number, []),
            "passed": dependent.passed,
            "use": USES[row["fate"]],
            "dataset": row["md5"],
        }


def _distinct(items: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({orjson.dumps(item, option=orjson.OPT_SORT_KEYS): item for item in items}.values())


def render_record(report: RecordReport) -> RenderableType:
    """A record's datasets and versions as a table for a terminal."""
    erased = "".join(f" It was {text}" for text in report.erased)
    if not report.found:
        where = f"in none of the {report.searched} datasets of this workspace and its models"
        return escape(f"Record {report.record}: {where}.{erased}")
    table = Table("where", "hash or alias", "outcome", box=None, title=escape(f"Record {report.record}.{erased}"))
    for origin in report.origins:
        senders = ", ".join(origin.get("senders", ()))
        sent = f"read here, sent with token {senders}" if senders else "read here"
        table.add_row(escape(f"{origin['file']}, line {origin['line']}"), "", escape(sent))
    for row in report.datasets:
        words = [row["fate"], *(str(row[name]) for name in ("reason", "into") if row[name])]
        words += [f"(as {row['record']})"] if row["record"] != report.record else []
        table.add_row(row["path"], row["md5"][:20], escape(" ".join(words)))
    for use in report.versions:
        table.add_row(use["model_uri"], ", ".join(use["aliases"]), use["use"])
    _add_problems(table, report.problems)
    return table


def render_trace(report: TraceReport) -> RenderableType:
    """The versions that rest on a thing, as a table for a terminal."""
    what = f"{report.kind.replace('_', ' ')} {report.key}"
    if not report.found:
        known = f" Known are: {', '.join(report.known[:12])}." if report.known else ""
        return f"{what}: none of the {report.searched} versions rests on it.{known}"
    table = Table("version", "aliases", "gate", "use", box=None, title=escape(what))
    for row in report.versions:
        verdict = "passed" if row["passed"] else "rejected"
        table.add_row(row["model_uri"], ", ".join(row["aliases"]), verdict, escape(row["use"]))
    _add_problems(table, report.problems)
    return table


def _add_problems(table: Table, problems: Iterable[str]) -> None:
    for problem in problems:
        table.add_row(f"[red]{escape(problem)}[/red]")
