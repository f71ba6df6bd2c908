"""Verb: take a batch, a sender or an annotator out of all later runs, on record, and say which models used them.

1. Find what is named: an unknown name is refused, with the names that are near.
2. Append the withdrawal to the raw store, unless it is in force already. The store itself loses nothing.
3. List the registered versions whose data hold what was withdrawn: they are not changed by this.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from plumbline.data_contracts.errors import PlumblineError, UsageError
from plumbline.data_contracts.records import Quarantined
from plumbline.tasks.data.feedback import SOURCES
from plumbline.tasks.data.feedback.validate import NamedBatch, raw_batches
from plumbline.tasks.data.feedback.withdrawals import Kind, Withdrawal, Withdrawals, annotators_of
from plumbline.tasks.data.ingest_feedback import arrived_batches, withdraw_from_raw, withdrawals_of
from plumbline.tasks.data.validate_feedback import RAW
from plumbline.tasks.operations.intake.tokens import token_file, token_names
from plumbline.tasks.params.feedback_limits import LIMITS
from plumbline.tasks.params.registry import RegistryParams
from plumbline.tasks.registry.trace_lineage import trace

_SHOWN = 5
_LONGEST_REASON = 1000


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """The result of a withdrawal: the entry in force (or taken back), its rows, and the versions that used them."""

    entry: Withdrawal
    changed: bool
    rows: int
    versions: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def withdraw(
    root: Path, params: RegistryParams, kind: Kind, name: str, *, reason: str, by: str, undo: bool = False
) -> Withdrawn:
    """Withdraw feedback, or take a withdrawal back. Repeating it changes nothing.

    Raises `UsageError` for a name that no feedback has, or an empty reason.
    """
    text = _reason(reason)
    counts, problems = _rows_of(root, kind)
    name = _find(kind, name, counts, withdrawals_of(root))
    standing = withdrawals_of(root).find(kind, name)
    if (standing is None) is undo:
        entry, changed = standing or Withdrawal(kind, name, text, by, "", undone=True), False
    else:
        entry = Withdrawal(kind, name, text, by, datetime.now(UTC).isoformat(timespec="seconds"), undone=undo)
        withdraw_from_raw(root, entry)
        changed = True
    versions, unknown = _versions(root, params, kind, name)
    return Withdrawn(entry, changed, counts.get(name, 0), versions, [*problems, *unknown])


def _reason(text: str) -> str:
    text = " ".join(text.split())
    if not text or len(text) > _LONGEST_REASON or not text.isprintable():
        raise UsageError(f"--reason: expected 1 to {_LONGEST_REASON} printable characters, found {len(text)}. Say why.")
    return text


def _rows_of(root: Path, kind: Kind) -> tuple[dict[str, int], list[str]]:
    """Rows of each batch, sender or annotator, and what could not be read of them."""
    counts: Counter[str] = Counter()
    problems = []
    for batch in _batches(root):
        if kind == "batch":
            counts[batch[1]] += 0
        try:
            counts.update(_names(kind, batch))
        except PlumblineError as error:
            problems.append(str(error))
    if kind == "token":
        counts.update(dict.fromkeys(token_names(token_file(root)), 0))
    return dict(counts), problems


def _batches(root: Path) -> list[NamedBatch]:
    """Every file of feedback that a run reads."""
    found = [
        *arrived_batches(root),
        *raw_batches(root / RAW, within=root),
        *raw_batches(root / "data/world/feedback", within=root),
    ]
    return list({name: (source, name, path) for source, name, path in found}.values())


def _names(kind: Kind, batch: NamedBatch) -> Iterator[str]:
    """The batch, the senders or the annotator of each row."""
    source, file, path = batch
    for row in SOURCES[source](path, file, LIMITS):
        outcome = row.outcome
        if kind == "batch":
            yield file
        elif kind == "token":
            yield from outcome.senders if isinstance(outcome, Quarantined) else outcome.origin.senders
        else:
            yield from annotators_of(outcome, row.raw)


def _find(kind: Kind, name: str, counts: dict[str, int], withdrawn: Withdrawals) -> str:
    """The full name; a batch may be given by its digest, or the start of it. Raises `UsageError`."""
    known = sorted({*counts, *(entry.name for entry in withdrawn.entries if entry.kind == kind)})
    if name in known:
        return name
    if kind == "batch":
        short = name.removeprefix("./").rpartition("/")[2].partition(".")[0]
        found = [path for path in known if _is_named(path, name, short)]
        if len(found) == 1:
            return found[0]
        if len(found) > 1:
            raise UsageError(f"--batch {name}: expected one batch, found {', '.join(found[:_SHOWN])}. Give its path.")
    near = difflib.get_close_matches(name, known, n=_SHOWN, cutoff=0.5)
    told = f"Did you mean {', '.join(near)}?" if near else f"There are: {', '.join(known[:_SHOWN]) or 'none'}."
    raise UsageError(f"--{kind} {name}: no feedback in this workspace is of this {kind}. {told} Nothing was withdrawn.")


def _is_named(path: str, name: str, short: str) -> bool:
    digest = path.rpartition("/")[2].partition(".")[0]
    if path.endswith(f"/{name.removeprefix('./')}"):
        return True
    return len(short) >= 7 and (digest.startswith(short.lower()) or short.lower().startswith(digest))


def _versions(root: Path, params: RegistryParams, kind: Kind, name: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Registered versions whose data hold it. The withdrawal stands, whether the registry answers or not."""
    try:
        report = trace(root, kind, name, params)
    except PlumblineError as error:
        return [], [f"which models used it is not known: {error}"]
    return report.versions, report.problems
