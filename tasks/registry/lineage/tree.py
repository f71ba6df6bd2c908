"""A lineage graph as a tree for a terminal, and the timeline of aliases as a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from plumbline.tasks.registry.lineage.graph import Graph, Node

_MARKS = {"ok": "[green]ok[/green] ", "changed": "[red]CHANGED[/red] ", "unchecked": ""}
_MANY = 8  # leaves of one kind under one node: the others are counted


def render_graph(graph: Graph) -> Tree:
    """The walk from the version down; a node met again is named, not repeated."""
    children: dict[str, list[tuple[str, str]]] = {}
    for edge in graph.edges:
        children.setdefault(edge.source, []).append((edge.relation, edge.target))
    tree = Tree(_label(graph.nodes["version"]))
    _grow(tree, "version", graph, children, {"version"})
    return tree


def _grow(tree: Tree, ident: str, graph: Graph, children: Mapping[str, list[tuple[str, str]]], seen: set[str]) -> None:
    shown: dict[str, int] = {}
    for relation, target in children.get(ident, ()):
        node = graph.nodes[target]
        shown[node.kind] = shown.get(node.kind, 0) + 1
        if shown[node.kind] > _MANY and target not in children:
            continue
        again = target in seen
        below = " (above)" if again and target in children else ""
        branch = tree.add(_label(node, relation) + below)
        if not again:
            seen.add(target)
            _grow(branch, target, graph, children, seen)
    for kind, count in shown.items():
        if count > _MANY:
            tree.add(f"[dim]and {count - _MANY} more of kind {kind} (--format json lists them)[/dim]")


def _label(node: Node, relation: str = "") -> str:
    path = str(node.facts.get("path") or node.label)
    title = node.label if path != node.label and node.kind != "batch" else ""
    words = ", ".join(word for word in (title, relation) if word)
    return f"{_MARKS[node.state]}{escape(path)} [dim]{escape(node.digest[:20])} {escape(words)}[/dim]"


def render_timeline(lines: Iterable[Mapping[str, Any]], number: str) -> Table:
    """The moves of aliases, by whom and when, oldest first; lines of this version are bold."""
    table = Table("when", "alias", "from", "to", "what", "by", "why", box=None, title="Aliases over time")
    for line in lines:
        ours = number in (line["version"], line["previous"])
        cells = (line["at"], line["alias"], line["previous"] or "", line["version"] or "", line["action"])
        table.add_row(
            *(escape(str(cell)) for cell in (*cells, line["actor"], line["reason"])), style="bold" if ours else ""
        )
    return table
