"""A look of the monitor for people: Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def markdown(report: Mapping[str, Any]) -> str:
    """Findings first, then every reading, then what was asked for."""
    found = [reading for reading in report["readings"] if reading["verdict"] == "finding"]
    lines = [
        f"# Monitor: {report['champion'] or 'no champion'}, {report['look']}",
        "",
        f"{len(found)} finding(s). False alarms of all sequential monitors together, ever: at most "
        f"{report['alpha']:.1%}.",
        "",
        "| monitor | verdict | value | interval | n | threshold | smallest change seen | why |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for reading in [*found, *(item for item in report["readings"] if item["verdict"] != "finding")]:
        interval = "" if reading["low"] is None else f"{reading['low']:.3f} to {reading['high']:.3f}"
        cells = (
            reading["name"],
            reading["verdict"],
            _number(reading["value"]),
            interval,
            str(reading["n"]),
            _number(reading["threshold"]),
            _number(reading["smallest_difference"]),
            reading["why"].replace("|", "/"),
        )
        lines.append(f"| {' | '.join(cells)} |")
    for name, request in report["requests"].items():
        lines += ["", f"Retraining asked for because of {name}: key `{request['key']}`, {request['state']}."]
    return "\n".join([*lines, ""])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
