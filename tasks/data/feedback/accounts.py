"""The account of a validation: rows read, their outcomes, and whether that is good enough."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from plumbline.data_contracts import unpaired_response
from plumbline.data_contracts.preference_pair import CONTRACT, VERSION
from plumbline.data_contracts.records import Feedback, PreferencePair, Quarantined
from plumbline.tasks.data.feedback.defects import NOTES
from plumbline.tasks.data.feedback.implied_prompts import FORM as IMPLIED
from plumbline.tasks.data.feedback.implied_prompts import ImpliedPrompts, objection
from plumbline.tasks.data.feedback.rows import ReadRow
from plumbline.tasks.data.feedback.shares import too_many
from plumbline.tasks.params.feedback import FeedbackParams

Report = dict[str, Any]

_EXAMPLES = 3  # kept for each check
_FILES_SHOWN = 3
_NAMES_SHOWN = 40


@dataclass(slots=True)
class FileAccount:
    """The account of one file."""

    file: str
    source: str
    unpaired: bool = False
    accepted: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    cases: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: dict[tuple[str, str], list[Quarantined]] = field(default_factory=dict)
    unknown: Counter[str] = field(default_factory=Counter)
    notes: Counter[tuple[str, str]] = field(default_factory=Counter)
    noted: dict[tuple[str, str], list[dict[str, Any]]] = field(default_factory=dict)
    implied: ImpliedPrompts = field(default_factory=ImpliedPrompts)
    skipped: str | None = None

    def count(self, row: ReadRow, outcome: Feedback | Quarantined) -> None:
        """Enter one row and its outcome."""
        self.formats[row.format] += 1
        if row.label is not None:
            self.labels[row.label] += 1
        self.unknown.update(row.unknown)
        for note in row.notes:
            kind = (note.field, note.kind)
            self.notes[kind] += 1
            examples_of_it = self.noted.setdefault(kind, [])
            if len(examples_of_it) < _EXAMPLES:
                examples_of_it.append({"file": self.file, "line": row.line, "found": note.found})
        if not isinstance(outcome, Quarantined):
            self.accepted += 1
            if row.format == IMPLIED and isinstance(outcome, PreferencePair):
                self.implied.count(outcome, row.raw)
            return
        self.reasons[outcome.reason] += 1
        check = (outcome.field or "row", outcome.reason)
        self.cases[check] += 1
        examples = self.examples.setdefault(check, [])
        if len(examples) < _EXAMPLES:
            examples.append(outcome)

    def count_accepted(self, form: str, label: str | None) -> None:
        """Enter a row that was accepted, of which there is nothing to note."""
        self.formats[form] += 1
        if label is not None:
            self.labels[label] += 1
        self.accepted += 1

    @property
    def read(self) -> int:
        """Rows read, whatever became of them."""
        return self.formats.total()

    def account(self) -> dict[str, Any]:
        """The entry as JSON, without examples."""
        more: dict[str, Any] = {"unknown_fields": _ordered(self.unknown)} if self.unknown else {}
        return {
            "file": self.file,
            "source": self.source,
            "read": self.read,
            "accepted": self.accepted,
            "quarantined": self.reasons.total(),
            "reasons": dict(self.reasons),
            "formats": dict(self.formats),
            "label_counts": dict(self.labels),
            **more,
            **({"skipped": self.skipped} if self.skipped is not None else {}),
        }


class FeedbackAccounts:
    """The account of all files of a validation."""

    def __init__(self) -> None:
        self.entries: list[FileAccount] = []

    def open_batch(self, file: str, source: str, *, unpaired: bool = False) -> FileAccount:
        """Start the account of a file; `unpaired` where its records are single responses."""
        self.entries.append(FileAccount(file, source, unpaired))
        return self.entries[-1]

    @property
    def read(self) -> int:
        """Rows read so far, over all files."""
        return sum(entry.read for entry in self.entries)

    def report(self, *, single_label_rows: int) -> Report:
        """The whole account as JSON.

        `reasons`, `formats` and `label_counts` map a name to its rows; `reasons` add up to `quarantined` and
        `formats` to `read`. `checks` lists field, reason, cases and examples, the most frequent first;
        `single_label` the files in which at least `single_label_rows` labels are all the same; `implied_prompts` says
        in which files prompts were merely the first words of responses. `unknown_fields` counts
        the rows of every field that no format knows; `notes` lists what was left out of rows that were read all the
        same; `skipped` the files that cannot be read, and why. If there are files of single responses, `unpaired` is
        their part of the account.
        """
        entries = self.entries
        accepted = sum(entry.accepted for entry in entries)
        reasons = sum((entry.reasons for entry in entries), Counter[str]())
        assert self.read == accepted + reasons.total(), "a row is neither accepted nor quarantined"
        unpaired = [entry for entry in entries if entry.unpaired]
        return ({"unpaired": _unpaired_account(unpaired)} if unpaired else {}) | {
            "contract": {"name": CONTRACT, "version": VERSION},
            "read": self.read,
            "accepted": accepted,
            "merged": 0,
            "quarantined": reasons.total(),
            "reasons": dict(reasons),
            "formats": dict(sum((entry.formats for entry in entries), Counter[str]())),
            "label_counts": dict(sum((entry.labels for entry in entries), Counter[str]())),
            "single_label": [entry.file for entry in entries if _single_label(entry.labels, single_label_rows)],
            "implied_prompts": [entry.implied.text(entry.file) for entry in entries if entry.implied.doubtful],
            "unknown_fields": _ordered(sum((entry.unknown for entry in entries), Counter[str]())),
            "notes": self._notes(),
            "skipped": [{"file": entry.file, "why": entry.skipped} for entry in entries if entry.skipped is not None],
            "checks": self._checks(),
            "batches": [entry.account() for entry in entries],
        }

    def _checks(self) -> list[dict[str, Any]]:
        cases = sum((entry.cases for entry in self.entries), Counter[tuple[str, str]]())
        ordered = sorted(cases.items(), key=lambda item: (-item[1], item[0]))
        return [
            {"field": check[0], "reason": check[1], "cases": count, "examples": self._examples(check)}
            for check, count in ordered
        ]

    def _notes(self) -> list[dict[str, Any]]:
        """Notes on single fields: {"field", "note", "meaning", "rows", "examples"}, the most frequent first."""
        rows = sum((entry.notes for entry in self.entries), Counter[tuple[str, str]]())
        return [
            {
                "field": place,
                "note": kind,
                "meaning": NOTES[kind],
                "rows": count,
                "examples": [each for entry in self.entries for each in entry.noted.get((place, kind), ())][:_EXAMPLES],
            }
            for (place, kind), count in sorted(rows.items(), key=lambda item: (-item[1], item[0]))
        ]

    def _examples(self, check: tuple[str, str]) -> list[dict[str, Any]]:
        found = [record for entry in self.entries for record in entry.examples.get(check, ())]
        return [record.model_dump(include={"file", "line", "expected", "found"}) for record in found[:_EXAMPLES]]


def objections(report: Report, params: FeedbackParams, *, needs_pairs: bool = True) -> tuple[list[str], list[str]]:
    """The findings of a report that stop the run, and those that are a warning, each as a sentence or two.

    `needs_pairs`: whether it takes a valid pair. One of the two kinds must have a valid row in any case.
    """
    stops: list[str] = []
    warnings: list[str] = []
    unpaired = report.get("unpaired")
    pairs = _without(report, unpaired) if unpaired else report
    if pairs["accepted"] == 0 and (needs_pairs or not unpaired or unpaired["accepted"] == 0):
        stops.append(
            f"no valid row: expected at least one preference pair, found {pairs['read']} rows, none of them valid."
            + (" Single responses alone leave nothing to train a reward model on or to evaluate with." * bool(unpaired))
        )
    else:
        stops += too_many(pairs["reasons"], pairs["read"], params)
    if unpaired:
        stops += too_many(unpaired["reasons"], unpaired["read"], params, "rows of single responses")
    warnings += [f"skipped {skipped['file']}: {skipped['why']}" for skipped in report["skipped"]]
    if report["single_label"]:
        (stops if params.on_single_label == "stop" else warnings).append(_same_label(report))
    if report["implied_prompts"]:
        (stops if params.on_implied_prompts == "stop" else warnings).append(objection(report["implied_prompts"]))
    return stops, warnings


def describe(report: Report) -> str:
    """The account for people: the identity, then a line a check: `field: reason — 3 cases (e.g. …)`."""
    lines = [
        f"read {report['read']} = accepted {report['accepted']} + merged {report['merged']} "
        f"+ quarantined {report['quarantined']}  (formats: {_counts(report['formats'])})"
    ]
    for check in report["checks"]:
        cases = "1 case" if check["cases"] == 1 else f"{check['cases']} cases"
        example = check["examples"][0]
        lines.append(
            f"  {check['field']}: {check['reason']} — {cases} (e.g. {example['file']} line {example['line']}: "
            f"expected {example['expected']}, found {example['found']})"
        )
    if report["unknown_fields"]:
        lines.append(f"  all unknown fields, with their rows: {_listed(report['unknown_fields'])}")
    return "\n".join([*lines, *(f"  {line}" for line in describe_notes(report))])


def describe_notes(report: Report) -> list[str]:
    """A line for each kind of note: `id: given to other content …: 3 rows (e.g. …)`."""
    return [
        f"{note['field']}: {note['meaning']}: {note['rows']} {'row' if note['rows'] == 1 else 'rows'} "
        f"(e.g. {example['file']} line {example['line']}: {example['found']})"
        for note in report["notes"]
        for example in note["examples"][:1]
    ]


def _unpaired_account(entries: Sequence[FileAccount]) -> Report:
    reasons = sum((entry.reasons for entry in entries), Counter[str]())
    return {
        "contract": {"name": unpaired_response.CONTRACT, "version": unpaired_response.VERSION},
        "read": sum(entry.read for entry in entries),
        "accepted": sum(entry.accepted for entry in entries),
        "merged": 0,
        "quarantined": reasons.total(),
        "reasons": dict(reasons),
    }


def _without(report: Report, part: Report) -> Report:
    """Rows, accepted and reasons of a report without those of a part of it."""
    counts = {name: report[name] - part[name] for name in ("read", "accepted")}
    return counts | {"reasons": Counter(report["reasons"]) - Counter(part["reasons"])}


def _same_label(report: Report) -> str:
    batches = {batch["file"]: batch for batch in report["batches"]}
    files = report["single_label"]
    shown = ", ".join(f"{file} ({_counts(batches[file]['label_counts'])})" for file in files[:_FILES_SHOWN])
    more = f" and {len(files) - _FILES_SHOWN} more" if len(files) > _FILES_SHOWN else ""
    return (
        f"one class only: expected both labels a and b in a file, found one in {shown}{more}. The position of a "
        f"response then gives its label away, and nobody can tell judgement from a habit of the export. Shuffle "
        f"response_a and response_b with their labels at the source, or, if the file is known to list the better "
        f"response in one place, set feedback.on_single_label=warn."
    )


def _single_label(labels: Mapping[str, int], fewest: int) -> bool:
    a, b = labels.get("a", 0), labels.get("b", 0)
    return min(a, b) == 0 and max(a, b) >= fewest


def _ordered(counts: Mapping[str, int]) -> dict[str, int]:
    """The most frequent first."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _listed(counts: Mapping[str, int]) -> str:
    shown = [f"{name} {count}" for name, count in _ordered(counts).items()][:_NAMES_SHOWN]
    more = f" and {len(counts) - _NAMES_SHOWN} more" if len(counts) > _NAMES_SHOWN else ""
    return ", ".join(shown) + more


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"
