"""The end of a run, for people and for programs: stages with their times, metrics, gate, where the model is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from tasks.register_model import Registered

_COUNTS = ("read", "accepted", "merged", "quarantined")


def payload_of(registered: Registered, seconds: float) -> dict[str, Any]:
    """The JSON object of `plumbline retrain --json`."""
    facts = {record.name: record.artifact.facts for record in registered.stages}
    return {
        "model_uri": registered.model_uri,
        "alias_uris": registered.alias_uris,
        "gate": {"passed": registered.passed, "reasons": facts["gate"]["reasons"]},
        "metrics": facts["evaluate"]["metrics"],
        "stages": [
            {"name": record.name, "seconds": round(record.seconds, 2), "reused": record.reused}
            for record in registered.stages
        ],
        "counts": {name: facts["curate"][name] for name in (*_COUNTS, "reasons", "merged_reasons", "splits")},
        "seconds": round(seconds, 2),
    }


def tables_of(registered: Registered, seconds: float, root: Path) -> Iterator[RenderableType]:
    """The tables that a person reads."""
    facts = {record.name: record.artifact.facts for record in registered.stages}
    yield _stages(registered, seconds)
    yield _metrics(facts["evaluate"]["metrics"])
    yield _gate(facts["gate"])
    counts = facts["curate"]
    yield Text(
        f"\nFeedback: read {counts['read']} = accepted {counts['accepted']} + merged {counts['merged']} "
        f"+ quarantined {counts['quarantined']}"
        + "".join(f"\n  {name}: {count}" for name, count in counts["reasons"].items())
    )
    yield Text(_too_long(facts))
    names = ", ".join([registered.model_uri, *registered.alias_uris])
    state = "passed the gate" if registered.passed else "REJECTED by the gate, registered without an alias"
    yield Text(f"\nModel:    {names} ({state})\nFiles:    {root / 'models/policy'}")
    yield Text(f"Audit it: plumbline audit {(registered.alias_uris or [registered.model_uri])[0]} -C {root}")


def _stages(registered: Registered, seconds: float) -> Table:
    table = Table("stage", "seconds", "", box=None, title="Stages", title_justify="left")
    table.columns[1].justify = "right"
    for record in registered.stages:
        table.add_row(record.name, f"{record.seconds:.1f}", "reused" if record.reused else "")
    table.add_row("in all", f"{seconds:.1f}", "stages overlap")
    return table


def _metrics(metrics: Mapping[str, Any]) -> Table:
    table = Table("metric", "value", "95 % interval", "n", box=None, title="\nOn the test split", title_justify="left")
    for name, value in _flat(metrics):
        if isinstance(value, Mapping):
            interval = f"[{value['low']:.3f}, {value['high']:.3f}]" if value.get("low") is not None else ""
            table.add_row(name, f"{value['value']:.3f}", interval, str(value.get("n", "")))
    return table


def _gate(gate: Mapping[str, Any]) -> Table:
    table = Table("", "check", box=None, title="\nGate", title_justify="left")
    for reason in gate["reasons"]:
        table.add_row("ok" if reason["passed"] else "NO", reason["text"])
    return table


def _too_long(facts: Mapping[str, Any]) -> str:
    """One line on what did not fit a model's context: set aside whole at that stage, never cut."""
    counts = {
        "SFT conversations": facts["reference"].get("examples", {}).get("too_long", 0),
        "reward-model training pairs": facts["reward"]["too_long"]["train"],
        "fine-tuning pairs": facts["finetune"]["too_long"]["train"],
        "test pairs": facts["evaluate"]["metrics"]["counts"]["pairs_over_context"],
        "test prompts": facts["evaluate"]["metrics"]["counts"]["prompts_over_context"],
    }
    aside = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    return f"Beyond the context, set aside: {aside or 'none'}"


def _flat(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in metrics.items():
        if isinstance(value, Mapping) and "value" not in value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
