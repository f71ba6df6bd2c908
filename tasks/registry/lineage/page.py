"""The lineage of a version as one HTML page: the graph as inline SVG, every detail below it, nothing from elsewhere.

Texts come from feedback, from models and from people, so all of them pass `html.escape`, in attributes too, and the
page's content security policy allows this style and this script, by their hashes, and nothing else: no network, no
inline handlers, no images. Without JavaScript the graph's boxes are links to the details.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from plumbline.tasks.registry.lineage.details import describe_facts, table, titled
from plumbline.tasks.registry.lineage.drawing import draw
from plumbline.tasks.registry.lineage.graph import Graph
from plumbline.tasks.registry.lineage.layout import Box, Drawing, lay_out

_ASSETS = files("plumbline.tasks.registry.lineage") / "assets"
_MOST_ROWS = 2000  # of objects and members shown; the JSON has all of them


def render_page(
    graph: Graph,
    manifest: Mapping[str, Any],
    verified: bool | None,
    checked: Mapping[str, Any],
    timeline: Sequence[Mapping[str, Any]],
) -> str:
    """The page. `checked` holds what the audit found: "objects", "problems" and "notes"."""
    style, script = ((_ASSETS / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    drawing = lay_out(graph)
    policy = f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; base-uri 'none'; "
    return "".join(
        [
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{escape(policy + "form-action " + _NONE)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="referrer" content="no-referrer">',
            f"<title>Lineage of {escape(graph.model_uri)}</title><style>{style}</style></head><body>",
            _header(graph, manifest, verified, checked),
            _problems(checked),
            '<main><div class="canvas" id="canvas" tabindex="0" aria-label="Lineage graph">',
            draw(drawing, graph.model_uri),
            '</div><aside id="panel" aria-live="polite"><p class="hint">Choose a box to see what it is, where it came '
            "from and what rests on it.</p></aside></main>",
            _books(manifest),
            _timeline(timeline, graph),
            _details(graph, drawing),
            _objects(checked["objects"]),
            _texts(manifest),
            f"<footer>{_footer(manifest)}</footer><script>{script}</script></body></html>\n",
        ]
    )


_NONE = "'none'"


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _header(graph: Graph, manifest: Mapping[str, Any], verified: bool | None, checked: Mapping[str, Any]) -> str:
    version = graph.nodes["version"]
    verdict = {
        True: ("good", "verified: every byte as registered"),
        False: ("bad", f"{len(checked['problems'])} problem(s) found"),
        None: ("plain", "not re-hashed"),
    }[verified]
    gate = ("good", "gate passed") if manifest["gate"]["passed"] else ("bad", "gate rejected")
    names = [("alias", node.label) for node in graph.nodes.values() if node.kind == "alias"]
    badges = "".join(f'<span class="badge {kind}">{escape(text)}</span>' for kind, text in (verdict, gate, *names))
    copies = f"{len(checked['objects']):,} copies of objects checked"
    return (
        f'<header><div><h1>{escape(graph.model_uri)}</h1><p class="badges">{badges}</p>'
        f'<p class="under">registered {escape(str(version.facts["registered"]))} · manifest '
        f"<code>{escape(version.digest[:16])}</code> · {copies}</p></div>"
        '<label class="search">Search<input id="search" type="search" placeholder="name, digest, annotator…" '
        'autocomplete="off"><output id="matches"></output></label>'
        '<label class="fit"><input id="fit" type="checkbox"> whole graph at once</label></header>'
    )


def _problems(checked: Mapping[str, Any]) -> str:
    problems = "".join(f"<li>{escape(text)}</li>" for text in checked["problems"])
    notes = "".join(f"<li>{escape(text)}</li>" for text in checked["notes"])
    shown = (
        f'<section class="alarm" role="alert"><h2>What is wrong</h2><ul>{problems}</ul></section>' if problems else ""
    )
    return shown + (f'<section class="note"><h2>Worth knowing</h2><ul>{notes}</ul></section>' if notes else "")


def _books(manifest: Mapping[str, Any]) -> str:
    """The accounting identity, and every reason for setting a row aside."""
    counts = manifest["counts"]
    if not {"read", "accepted", "merged", "quarantined"} <= counts.keys():
        return ""
    terms = [("read", "="), ("accepted", "+"), ("merged", "+"), ("quarantined", "")]
    identity = "".join(
        f'<span class="term"><b>{counts[name]:,}</b><i>{name}</i></span><span class="sign">{sign}</span>'
        for name, sign in terms
    )
    reasons = sorted(counts.get("reasons", {}).items(), key=lambda item: -item[1])
    rows = [[name.replace("_", " "), f"{count:,}"] for name, count in reasons]
    aside = table(["set aside because", "rows"], rows) if rows else ""
    return titled("The counts of the data", f'<div class="books"><p class="identity">{identity}</p>{aside}</div>')


def _timeline(lines: Sequence[Mapping[str, Any]], graph: Graph) -> str:
    if not lines:
        return ""
    number = graph.model_uri.rsplit("/", 1)[-1]
    rows = []
    for line in lines:
        move = f"{line['previous'] or 'none'} → {line['version'] or 'none'}"
        rows.append([line["at"], f"@{line['alias']}", move, line["action"], line["actor"], line["reason"]])
    marked = [number in (line["version"], line["previous"]) for line in lines]
    heads = ["when", "alias", "version", "what", "by", "why"]
    return titled(
        "Aliases over time", table(heads, rows, marked) + '<p class="under">This version\'s lines are bold.</p>'
    )


def _details(graph: Graph, drawing: Drawing) -> str:
    """One section a box: what it is, its facts, and links both ways."""
    places = {member.id: number for number, box in enumerate(drawing.boxes.values()) for member in box.members}
    down: dict[int, list[tuple[str, int]]] = {}
    up: dict[int, list[tuple[str, int]]] = {}
    for edge in dict.fromkeys((places[e.source], places[e.target], e.relation) for e in graph.edges):
        source, target, relation = edge
        down.setdefault(source, []).append((relation, target))
        up.setdefault(target, []).append((relation, source))
    boxes = list(drawing.boxes.values())
    parts = [_section(number, box, boxes, down.get(number, []), up.get(number, [])) for number, box in enumerate(boxes)]
    return f'<section id="details"><h2>Everything in the graph</h2>{"".join(parts)}</section>'


def _section(
    number: int, box: Box, boxes: Sequence[Box], down: Iterable[tuple[str, int]], up: Iterable[tuple[str, int]]
) -> str:
    node = box.node
    if len(box.members) > 1:
        shown = box.members[:_MOST_ROWS]
        heads = ["name", "digest", "facts"]
        rows = [[item.label, item.digest, ", ".join(f"{k}: {v}" for k, v in item.facts.items())] for item in shown]
        body = table(heads, rows)
    else:
        digest = f'<p class="digest"><code>{escape(node.digest)}</code></p>' if node.digest else ""
        body = digest + describe_facts(node.facts)
    links = _links("rests on", down, boxes) + _links("is rested on by", up, boxes)
    kind = escape(node.kind.replace("_", " "))
    return (
        f'<article id="n{number}" class="detail {node.kind}"><h3><span class="kind">{kind}'
        f'</span>{escape(node.label)}<span class="state {node.state}">{node.state}</span></h3>{body}{links}</article>'
    )


def _links(words: str, edges: Iterable[tuple[str, int]], boxes: Sequence[Box]) -> str:
    items = "".join(
        f'<li><i>{escape(relation)}</i> <a href="#n{number}">{escape(boxes[number].node.label)}</a></li>'
        for relation, number in edges
    )
    return f'<div class="links"><h4>{words}</h4><ul>{items}</ul></div>' if items else ""


def _objects(objects: Sequence[Mapping[str, Any]]) -> str:
    heads = ["object", "kind", "copy", "hash", ""]
    ranked = sorted(objects, key=lambda item: item["ok"])
    rows = [[o["name"], o["kind"], o["where"], o["hash"], "ok" if o["ok"] else "CHANGED"] for o in ranked[:_MOST_ROWS]]
    more = (
        f'<p class="under">and {len(objects) - _MOST_ROWS:,} more; --json lists all.</p>'
        if len(objects) > _MOST_ROWS
        else ""
    )
    inner = table(heads, rows, [not item["ok"] for item in ranked[:_MOST_ROWS]]) + more
    return f"<section><details><summary>{len(objects):,} copies of objects checked</summary>{inner}</details></section>"


def _texts(manifest: Mapping[str, Any]) -> str:
    texts = [(name, entry["text"]) for name, entry in manifest["texts"].items()]
    if manifest["git"]["diff"]:
        texts.append(("uncommitted changes (git diff)", manifest["git"]["diff"]))
    parts = [f"<details><summary>{escape(name)}</summary><pre>{escape(text)}</pre></details>" for name, text in texts]
    return titled("Texts that made it", "".join(parts))


def _footer(manifest: Mapping[str, Any]) -> str:
    program = manifest["program"]
    return escape(
        f"Made by `plumbline audit --format html` from a manifest of plumbline {program.get('version')}, source "
        f"{str(program.get('source_sha256'))[:12]}. This page loads nothing and sends nothing."
    )
