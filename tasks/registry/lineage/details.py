"""Facts as HTML: tables and nested lists in which every text is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_LONG = 160  # characters from which a text folds away
_MANY = 24  # entries from which a mapping folds away


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]], marked: Sequence[bool] | None = None) -> str:
    """A table of texts; `marked` rows stand out."""
    top = "".join(f"<th>{escape(head)}</th>" for head in heads)
    lines = []
    for number, row in enumerate(rows):
        cells = "".join(f"<td>{escape(str(cell))}</td>" for cell in row)
        lines.append(f'<tr class="marked">{cells}</tr>' if marked and marked[number] else f"<tr>{cells}</tr>")
    head, body = f"<thead><tr>{top}</tr></thead>", "".join(lines)
    return f'<div class="scroll"><table>{head}<tbody>{body}</tbody></table></div>'


def titled(title: str, body: str) -> str:
    """A section of the page with a heading."""
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def describe_facts(facts: Mapping[str, Any]) -> str:
    """A definition list of facts; long texts and large mappings fold away."""
    items = "".join(
        f"<dt>{escape(str(name))}</dt><dd>{_value(value)}</dd>"
        for name, value in facts.items()
        if value not in ("", None)
    )
    return f"<dl>{items}</dl>" if items else ""


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        inner = describe_facts(value) or "none"
        return _folded(f"{len(value)} entries", inner) if len(value) > _MANY else inner
    if isinstance(value, list | tuple):
        return ", ".join(_value(item) for item in value) or "none"
    if isinstance(value, float):
        return escape(f"{value:.6g}")
    if isinstance(value, int) and not isinstance(value, bool):
        return escape(f"{value:,}")
    text = str(value)
    if len(text) > _LONG or "\n" in text:
        return _folded(f"{len(text):,} characters", f"<pre>{escape(text)}</pre>")
    return escape(text)


def _folded(summary: str, inner: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{inner}</details>"
