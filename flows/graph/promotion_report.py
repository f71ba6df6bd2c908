"""The output of promotion, rollback and history: tables for people, payloads for programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from plumbline.tasks.operations.promote_model import History, Promotion
from plumbline.tasks.registry.ledger.ledger import LedgerEntry


def promotion_payload(promotion: Promotion) -> dict[str, Any]:
    """A promotion or rollback as JSON-able facts."""
    return {
        "model_uri": promotion.model_uri,
        "alias": promotion.alias,
        "before": promotion.before,
        "promoted": promotion.promoted,
        "gates": [gate.as_dict() for gate in promotion.gates],
        "lines": [entry_payload(entry) for entry in promotion.lines],
        "repaired": promotion.repaired,
    }


def promotion_view(promotion: Promotion) -> RenderableType:
    """The gates, and what moved."""
    parts: list[RenderableType] = []
    if promotion.gates:
        table = Table("gate", "", "reason", box=None)
        for gate in promotion.gates:
            verdict = "[red]no[/red]" if not gate.passed else "[green]yes[/green]" if gate.applies else "-"
            interval = "" if gate.low is None or gate.high is None else f" [{gate.low:.3f}, {gate.high:.3f}]"
            count = "" if gate.n is None else f" (n {gate.n})"
            table.add_row(gate.name, verdict, escape(f"{gate.text}{interval}{count}"))
        parts.append(table)
    parts += [escape(f"repaired first: {note}") for note in promotion.repaired]
    parts += [escape(_moved(entry)) for entry in promotion.lines]
    if not promotion.promoted:
        parts.append(f"{escape(promotion.model_uri)}: not promoted to {promotion.alias}; nothing was changed.")
    return Group(*(_text(part) for part in parts))


def refusal(promotion: Promotion) -> str:
    """Why a promotion was refused, in one sentence with every reason."""
    reasons = "; ".join(f"{gate.name}: {gate.text}" for gate in promotion.refused_by)
    return (
        f"{promotion.model_uri} was not promoted to {promotion.alias}: {reasons}. Train a better one, change "
        f"`promotion` in params, or answer for it with --override NAME --override-reason TEXT."
    )


def history_payload(history: History) -> dict[str, Any]:
    """The ledger as JSON-able facts."""
    return {
        "lines": [entry_payload(entry) for entry in history.entries],
        "verified": not history.problems,
        "problems": history.problems,
        "moved_outside": history.moved_outside,
    }


def history_view(history: History) -> RenderableType:
    """The ledger as a table, and whether it is whole."""
    table = Table("line", "when (UTC)", "what", "who", "why", "evidence", box=None)
    for entry in history.entries:
        what = f"{entry.alias} {entry.previous or '-'} → {entry.version or '-'}" if entry.alias else f"{entry.version}"
        table.add_row(
            str(entry.seq),
            f"{entry.at:%Y-%m-%d %H:%M:%S}",
            escape(f"{entry.action} {what}"),
            escape(entry.actor),
            escape(entry.reason),
            escape(_evidence(entry)),
        )
    verdict = "[red]" + escape(" ".join(history.problems)) + "[/red]" if history.problems else "chain verified"
    strange = [
        f"[red]{escape(alias)} was moved outside the ledger: it says {found['ledger'] or 'none'}, MLflow says "
        f"{found['mlflow'] or 'none'}[/red]"
        for alias, found in history.moved_outside.items()
    ]
    return Group(table, *(_text(line) for line in (f"{len(history.entries)} lines, {verdict}", *strange)))


def entry_payload(entry: LedgerEntry) -> dict[str, Any]:
    """One line as JSON-able facts."""
    return asdict(entry)


def _moved(entry: LedgerEntry) -> str:
    name = f"{entry.model}@{entry.alias}"
    return f"{name}: {entry.previous or 'none'} -> {entry.version or 'none'} (line {entry.seq}, by {entry.actor})"


def _evidence(entry: LedgerEntry) -> str:
    words = []
    override = entry.evidence.get("override")
    if override:
        words.append(f"override by {override['name']}: {override['reason']} (failing: {_failing(entry)})")
    elif entry.evidence.get("gates"):
        words.append(f"{len(entry.evidence['gates'])} gates passed")
    if entry.evidence.get("moved_outside"):
        words.append(f"taken over: MLflow said {entry.evidence['moved_outside']['mlflow'] or 'none'}")
    if entry.evidence.get("manifest_sha256"):
        words.append(f"manifest {entry.evidence['manifest_sha256'][:12]}")
    return ", ".join(words)


def _failing(entry: LedgerEntry) -> str:
    return ", ".join(entry.evidence.get("failing", ()))


def _text(part: RenderableType) -> RenderableType:
    from rich.text import Text

    return Text.from_markup(part) if isinstance(part, str) else part
