"""The end of a run, for people and for programs: stages with their times, metrics, gate, where the model is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from plumbline.data_contracts.artifact import warnings_of
from plumbline.data_contracts.figures import FIGURES, judge_of, look_up, words_of
from plumbline.flows.graph.promotion_report import promotion_payload, promotion_view
from plumbline.tasks.data.feedback.shares import percent, shares
from plumbline.tasks.operations.settle_champion import Settled

_COUNTS = ("read", "accepted", "merged", "quarantined")


def payload_of(registered: Settled, seconds: float) -> dict[str, Any]:
    """The JSON object of `plumbline retrain --json`."""
    facts = registered.facts
    return {
        "model_uri": registered.model_uri,
        "alias_uris": registered.alias_uris,
        "gate": {"passed": registered.passed, "reasons": registered.reasons},
        "first_champion": None if registered.first is None else promotion_payload(registered.first),
        "warnings": _warnings(registered),
        "metrics": registered.metrics,
        "stages": [
            {"name": record.name, "seconds": round(record.seconds, 2), "reused": record.reused}
            for record in registered.stages
        ],
        "counts": {name: facts["curate"][name] for name in (*_COUNTS, "reasons", "merged_reasons", "splits")}
        | {"shares": shares(facts["curate"])},
        "refused_by_template": {name: own["refused_by_template"] for name, own in facts.items() if _sifted(own)},
        "control_tokens": _control_tokens(facts),
        "seconds": round(seconds, 2),
    }


def tables_of(registered: Settled, seconds: float, root: Path) -> Iterator[RenderableType]:
    """The tables that a person reads."""
    facts = registered.facts
    yield _stages(registered, seconds)
    yield _metrics(registered.metrics)
    yield _gate(facts["gate"])
    if _warnings(registered):
        yield _warned(_warnings(registered))
    yield Text(_feedback(facts["curate"]))
    yield Text(_too_long(facts))
    for line in (_refused(facts), _spelled(_control_tokens(facts))):
        if line:
            yield Text(line)
    names = ", ".join([registered.model_uri, *registered.alias_uris])
    if registered.first is not None and not registered.first.promoted:
        yield Text("\nNo champion yet: this version passed its gate, but not the gates before that alias.")
        yield promotion_view(registered.first)
    state = "passed the gate" if registered.passed else "REJECTED by the gate, registered without an alias"
    metrics = root / "reports/evaluation/metrics.json"
    yield Text(f"\nModel:    {names} ({state})\nFiles:    {root / 'models/policy'}\nMetrics:  {metrics}")
    yield Text(f"Audit it: plumbline audit {(registered.alias_uris or [registered.model_uri])[0]} -C {root}")


def _feedback(counts: Mapping[str, Any]) -> str:
    """The account of the rows, and the share of each reason for which rows were set aside."""
    aside = shares(counts)
    lines = [
        f"\nFeedback: read {counts['read']} = accepted {counts['accepted']} + merged {counts['merged']} "
        f"+ quarantined {counts['quarantined']} ({percent(aside['quarantined'])})"
    ]
    lines += [f"  {name}: {count} ({percent(aside['reasons'][name])})" for name, count in counts["reasons"].items()]
    return "\n".join(lines)


def _stages(registered: Settled, seconds: float) -> Table:
    table = Table("stage", "seconds", "", box=None, title="Stages", title_justify="left")
    table.columns[1].justify = "right"
    for record in registered.stages:
        table.add_row(record.name, f"{record.seconds:.1f}", "reused" if record.reused else "")
    table.add_row("in all", f"{seconds:.1f}", "stages overlap")
    return table


def _metrics(metrics: Mapping[str, Any]) -> Table:
    table = Table("metric", "value", "interval", "n", box=None, title="\nOn the test split", title_justify="left")
    for name in FIGURES:
        figure = look_up(metrics, name)
        if figure is not None:
            table.add_row(
                words_of(name, judge_of(metrics)), *_cells(figure if isinstance(figure, Mapping) else {"value": figure})
            )
    return table


def _cells(estimate: Mapping[str, Any]) -> tuple[str, str, str]:
    """Value, interval and n of an estimate. Any of them may be null: one prompt has no interval, no pair no value."""
    value, low, high, n = (estimate.get(name) for name in ("value", "low", "high", "n"))
    interval = "" if low is None or high is None else f"[{low:.3f}, {high:.3f}]"
    return "not measured" if value is None else f"{value:.3f}", interval, "" if n is None else str(n)


def _gate(gate: Mapping[str, Any]) -> Table:
    table = Table("", "check", box=None, title="\nGate", title_justify="left")
    for reason in gate["reasons"]:
        table.add_row("ok" if reason["passed"] else "NO", reason["text"])
    return table


def _warnings(registered: Settled) -> list[dict[str, str]]:
    return warnings_of({record.name: record.artifact for record in registered.stages})


def _warned(warnings: Iterable[Mapping[str, str]]) -> Table:
    table = Table("stage", "warning", box=None, title="\nWarnings", title_justify="left")
    for entry in warnings:
        table.add_row(entry["stage"], Text(entry["text"]))
    return table


def _too_long(facts: Mapping[str, Any]) -> str:
    """One line on what did not fit a model's context: set aside whole at that stage, never cut."""
    counts = {
        "SFT conversations": look_up(facts, "reference.examples.too_long"),
        "reward-model training pairs": look_up(facts, "reward.too_long.train"),
        "fine-tuning examples": look_up(facts, "finetune.too_long.train"),
        "test pairs": look_up(facts, "evaluate.metrics.counts.pairs_over_context"),
        "test prompts": look_up(facts, "evaluate.metrics.counts.prompts_over_context"),
    }
    aside = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    return f"Beyond the context, set aside: {aside or 'none'}"


def _sifted(facts: Mapping[str, Any]) -> bool:
    """True if a stage told which records the template refuses; those of older runs do not."""
    return "refused_by_template" in facts


def _refused(facts: Mapping[str, Any]) -> str:
    """One line on records that the chat template refuses, by stage and split, with one of them; empty if none is."""
    found = {
        name: own["refused_by_template"]
        for name, own in facts.items()
        if _sifted(own) and own["refused_by_template"]["rows"]
    }
    if not found:
        return ""
    counts = [
        f"{count} {split} in {name}"
        for name, refused in found.items()
        for split, count in refused.items()
        if split not in ("reasons", "rows") and count
    ]
    one = next(iter(found.values()))["rows"][0]
    return f"Refused by the chat template, set aside: {', '.join(counts)} (such as {one['id']}: {one['reason']})"


def _control_tokens(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The number of records, of all splits, that spell control tokens, and the number for each token."""
    told = [facts[name].get("control_tokens") or {} for name in ("finetune", "evaluate")]
    tokens: Counter[str] = Counter()
    for own in told:
        tokens.update(own.get("tokens", {}))
    return {"rows": sum(own.get("rows", 0) for own in told), "tokens": dict(sorted(tokens.items()))}


def _spelled(found: Mapping[str, Any]) -> str:
    if not found["rows"]:
        return ""
    each = ", ".join(f"{token} {count}" for token, count in found["tokens"].items())
    return f"Records that spell control tokens, read as text: {found['rows']} ({each})"
