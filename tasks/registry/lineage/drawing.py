"""A laid-out graph as inline SVG. Every text is escaped; colours come from the page's style, by class."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from plumbline.tasks.registry.lineage.layout import HEIGHT, WIDTH, Box, Drawing

_LABEL, _DIGEST = 21, 10  # characters of a label and a digest that fit into a box


def draw(drawing: Drawing, title: str) -> str:
    """The SVG element. A box is a link to its details, `#n<number>`; an edge names the boxes that it joins."""
    numbers = {ident: number for number, ident in enumerate(drawing.boxes)}
    edges = "".join(
        f'<path class="edge" data-from="{numbers[edge.source]}" data-to="{numbers[edge.target]}" d="{_curve(points)}" '
        f'marker-end="url(#tip)"><title>{escape(edge.relation)}</title></path>'
        for edge, points in drawing.paths
    )
    boxes = "".join(_box(number, box) for number, box in enumerate(drawing.boxes.values()))
    width, height = round(drawing.width), round(drawing.height)
    return (
        f'<svg id="graph" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-label="Lineage of {escape(title)}"><defs><marker id="tip" '
        'viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path class="tip" d="M0,0.8 L8,4 L0,7.2 z"/></marker></defs>{edges}{boxes}</svg>'
    )


def _box(number: int, box: Box) -> str:
    node = box.node
    kind = node.kind.replace("_", " ")
    stacked = (
        f'<rect class="behind" x="5" y="5" width="{WIDTH}" height="{HEIGHT}" rx="9"/>' if len(box.members) > 1 else ""
    )
    digest = node.digest[:_DIGEST]
    mark = {"ok": "✓", "changed": "✗", "unchecked": ""}[node.state]
    return (
        f'<a class="node {node.kind} {node.state}" href="#n{number}" data-node="{number}" '
        f'transform="translate({box.x:.0f},{box.y:.0f})"><title>{escape(f"{kind}: {node.label} {node.digest}")}</title>'
        f'{stacked}<rect class="box" width="{WIDTH}" height="{HEIGHT}" rx="9"/><rect class="stripe" width="5" '
        f'height="{HEIGHT - 18}" x="8" y="9" rx="2.5"/><text class="kind" x="22" y="19">{escape(kind)}</text>'
        f'<text class="digest" x="{WIDTH - 12}" y="19" text-anchor="end">{escape(digest)}</text>'
        f'<text class="label" x="22" y="40">{escape(_short(node.label))}</text>'
        f'<text class="mark" x="{WIDTH - 12}" y="41" text-anchor="end">{mark}</text></a>'
    )


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LABEL else line[: _LABEL - 1] + "…"


def _curve(points: Sequence[tuple[float, float]]) -> str:
    """Smooth from box to lane to box: horizontal where it meets either."""
    x, y = points[0]
    parts = [f"M{x:.1f},{y:.1f}"]
    for px, py in points[1:]:
        bend = (px - x) / 2
        parts.append(f"C{x + bend:.1f},{y:.1f} {px - bend:.1f},{py:.1f} {px:.1f},{py:.1f}")
        x, y = px, py
    return " ".join(parts)
