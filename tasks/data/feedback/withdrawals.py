"""Withdrawals: batches, senders and annotators whose feedback no later run uses, on record.

Each withdrawal is a read-only file in the raw store, `.withdrawal-<number>-<digest>.json`: who, when, why. Nothing is
taken out of the store itself. The files are versioned with it, so that the stages that read feedback run anew, every
model's lineage has the withdrawals that were in force, and nobody removes one unseen. Taking one back is a file of
its own. A sender's or annotator's name is meant for good: rows that still come under it are withdrawn as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import orjson

from plumbline.data_contracts.artifact import write_read_only
from plumbline.data_contracts.errors import ArtifactError
from plumbline.data_contracts.quarantine_reasons import WITHDRAWN
from plumbline.data_contracts.records import Feedback, Quarantined

Kind = Literal["batch", "token", "annotator"]

_PREFIX = ".withdrawal-"


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """One line of the record: `undone` is true where it takes an earlier one back."""

    kind: Kind
    name: str
    reason: str
    by: str
    at: str
    undone: bool = False


@dataclass(frozen=True, slots=True)
class Withdrawals:
    """Every withdrawal in order, and those in force."""

    entries: tuple[Withdrawal, ...] = ()
    in_force: Mapping[tuple[str, str], Withdrawal] = field(default_factory=dict)

    def find(self, kind: Kind, name: str) -> Withdrawal | None:
        """The withdrawal in force of this batch (by path), sender or annotator."""
        return self.in_force.get((kind, name))

    def apply(self, outcome: Feedback | Quarantined, raw: str) -> Feedback | Quarantined:
        """The row as it is, or set aside as withdrawn; `raw` is its text."""
        if not self.in_force:
            return outcome
        found = self._covering(outcome, raw)
        return outcome if found is None else _set_aside(outcome, found, raw)

    @property
    def digest(self) -> str:
        """A digest that distinguishes these withdrawals from others, for caches."""
        facts = sorted((kind, name) for kind, name in self.in_force)
        return hashlib.sha256(orjson.dumps(facts)).hexdigest()[:12] if facts else ""

    def _covering(self, outcome: Feedback | Quarantined, raw: str) -> Withdrawal | None:
        return self.covering(*_source_of(outcome, raw))

    def covering(self, file: str, senders: Sequence[str], annotators: Sequence[str]) -> Withdrawal | None:
        """The withdrawal in force that covers a row of this file, from these senders, judged by these people."""
        if (found := self.find("batch", file)) is not None:
            return found
        withdrawn = [self.find("token", sender) for sender in senders]
        if withdrawn and all(withdrawn):  # what somebody else sent too, byte for byte, stays theirs
            return withdrawn[0]
        return next((found for name in annotators if (found := self.find("annotator", name)) is not None), None)


NONE = Withdrawals()


def load_withdrawals(*folders: Path) -> Withdrawals:
    """The withdrawals of a raw store, and of what waits beside it. Raises `ArtifactError` for one that was changed."""
    files = {path.name: path for folder in folders for path in folder.glob(f"{_PREFIX}*.json")}
    entries = tuple(_read(files[name]) for name in sorted(files))
    in_force: dict[tuple[str, str], Withdrawal] = {}
    for entry in entries:
        if entry.undone:
            in_force.pop((entry.kind, entry.name), None)
        else:
            in_force[entry.kind, entry.name] = entry
    return Withdrawals(entries, in_force)


def keep_withdrawal(raw: Path, entry: Withdrawal, *, after: Path | None = None) -> Path:
    """Append one withdrawal, whole or not at all. Call while no other process writes into the raw store.

    `after`: the folder whose withdrawals come before those of `raw`, where this one waits beside the store.
    """
    raw.mkdir(parents=True, exist_ok=True)
    data = orjson.dumps(asdict(entry), option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2) + b"\n"
    known = {path.name for folder in (raw, after) if folder for path in folder.glob(f"{_PREFIX}*.json")}
    number = len(known) + 1
    path = raw / f"{_PREFIX}{number:06d}-{hashlib.sha256(data).hexdigest()[:16]}.json"
    write_read_only(path, data)
    return path


def _read(path: Path) -> Withdrawal:
    data = path.read_bytes()
    try:
        if hashlib.sha256(data).hexdigest()[:16] != path.stem.rsplit("-", 1)[1]:
            raise ValueError("its bytes are not those that its name says")
        found: dict[str, Any] = orjson.loads(data)
        if found["kind"] not in get_args(Kind):
            raise ValueError(f"unknown kind {found['kind']!r}")
        return Withdrawal(**found)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ArtifactError(
            f"{path}: expected a withdrawal as `plumbline withdraw` writes it, found: {error}. The raw store is "
            f"append-only and this file was changed; `plumbline doctor --fix` brings it back."
        ) from error


def annotator_in(raw: str) -> str | None:
    """The annotator that a row names which could not be read as a record."""
    try:
        row = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    name = row.get("annotator") if isinstance(row, dict) else None
    return str(name) if isinstance(name, str | int) and not isinstance(name, bool) else None


def annotators_of(outcome: Feedback | Quarantined, raw: str) -> tuple[str, ...]:
    """Everybody who judged a row: its annotator, those of its votes, and those of the ratings that made it a pair."""
    if isinstance(outcome, Quarantined):
        name = annotator_in(raw)
        return () if name is None else (name,)
    return named_in(outcome.annotator, outcome.metadata)


def named_in(annotator: str | None, metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """Everybody who judged, by the annotator and the metadata of a record."""
    votes = metadata.get("votes")
    voters = [vote.get("annotator") for vote in votes if isinstance(vote, dict)] if isinstance(votes, list) else []
    several = metadata.get("annotators")
    names = [annotator, *voters, *(several if isinstance(several, list) else [])]
    return tuple(dict.fromkeys(str(name) for name in names if isinstance(name, str | int)))


def _source_of(outcome: Feedback | Quarantined, raw: str) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """File, senders and annotators of a row, whatever became of it."""
    annotators = annotators_of(outcome, raw)
    if isinstance(outcome, Quarantined):
        return outcome.file, outcome.senders, annotators
    return outcome.origin.file, outcome.origin.senders, annotators


def _set_aside(outcome: Feedback | Quarantined, found: Withdrawal, raw: str) -> Quarantined:
    told = {
        "reason": WITHDRAWN,
        "field": "annotator" if found.kind == "annotator" else None,
        "expected": "feedback that was not withdrawn",
        "found": f"{found.kind} {found.name}, withdrawn at {found.at} by {found.by}: {found.reason}",
        "raw": raw,
    }
    if isinstance(outcome, Quarantined):
        return outcome.model_copy(update=told)
    origin = outcome.origin
    return Quarantined(file=origin.file, line=origin.line, senders=origin.senders, record_id=outcome.id, **told)
