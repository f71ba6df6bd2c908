"""Places for the nodes of a lineage graph: layers from left to right, no two boxes over one another.

A layered drawing in the manner of Sugiyama, Tagawa & Toda (1981):

1. Layer of a node: the longest path to it from the version, so that every edge points to the right.
2. Order within layers: barycentre sweeps, which pull a node towards the middle of its neighbours; ties keep the
   order of the graph, so that the same graph is drawn the same way.
3. Coordinates: boxes of one size, columns centred on the tallest. An edge that crosses a column has a lane of its own
   there, so that it never runs behind a box.

Leaves of one kind that hang on one node (annotators, batches) are drawn as one box once they are more than `MANY`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import networkx as nx

from plumbline.tasks.registry.lineage.graph import Edge, Graph, Node

WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 212, 54, 68, 18, 28
LANE = 2  # height of the place where an edge passes a column
MANY = 5
_SWEEPS = 6


@dataclass(frozen=True, slots=True)
class Box:
    """A drawn node: its upper left corner, and the nodes it stands for (more than one in a gathered box)."""

    node: Node
    x: float
    y: float
    members: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Drawing:
    """Boxes and the edges between them, in pixels. A path is the points (x, y) that an edge goes through."""

    boxes: Mapping[str, Box]
    paths: Sequence[tuple[Edge, Sequence[tuple[float, float]]]]
    width: float
    height: float


def lay_out(graph: Graph) -> Drawing:
    """Place every node of a graph."""
    nodes, edges, members = _gathered(graph)
    net = nx.DiGraph()
    net.add_nodes_from(nodes)
    net.add_edges_from((edge.source, edge.target) for edge in edges)
    columns, lanes = _columns(net)
    _sweep(net, columns)
    heights = [sum(_height(ident, nodes) + GAP_Y for ident in column) - GAP_Y for column in columns]
    boxes: dict[str, Box] = {}
    points: dict[str, tuple[float, float]] = {}
    for number, column in enumerate(columns):
        x, y = MARGIN + number * (WIDTH + GAP_X), MARGIN + (max(heights) - heights[number]) / 2
        for ident in column:
            if ident in nodes:
                boxes[ident] = Box(nodes[ident], x, y, members[ident])
            else:
                points[ident] = (x, y)
            y += _height(ident, nodes) + GAP_Y
    width = 2 * MARGIN + len(columns) * (WIDTH + GAP_X) - GAP_X
    paths = [(edge, _path(edge, boxes, [points[lane] for lane in lanes.get(_pair(edge), ())])) for edge in edges]
    return Drawing(boxes, paths, width, 2 * MARGIN + max(heights))


def _height(ident: str, nodes: Mapping[str, Node]) -> int:
    return HEIGHT if ident in nodes else LANE


def _pair(edge: Edge) -> tuple[str, str]:
    return edge.source, edge.target


def _path(edge: Edge, boxes: Mapping[str, Box], lanes: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """From the right side of one box through its lanes, each as wide as a box, to the left side of the other."""
    source, target = boxes[edge.source], boxes[edge.target]
    through = [point for x, y in lanes for point in ((x, y), (x + WIDTH, y))]
    return [(source.x + WIDTH, source.y + HEIGHT / 2), *through, (target.x, target.y + HEIGHT / 2)]


def _gathered(graph: Graph) -> tuple[dict[str, Node], list[Edge], dict[str, tuple[Node, ...]]]:
    """Nodes, edges, and the members of each node, with many leaves of a kind under one node made one."""
    inner = {edge.source for edge in graph.edges}
    parents: defaultdict[str, list[str]] = defaultdict(list)
    for edge in graph.edges:
        parents[edge.target].append(edge.source)
    groups: defaultdict[tuple[str, str], list[Node]] = defaultdict(list)
    for node in graph.nodes.values():
        if node.id not in inner and len(parents[node.id]) == 1:
            groups[parents[node.id][0], node.kind].append(node)
    stand_in: dict[str, str] = {}
    nodes = dict(graph.nodes)
    members: dict[str, tuple[Node, ...]] = {ident: (node,) for ident, node in graph.nodes.items()}
    for (parent, kind), leaves in groups.items():
        if len(leaves) > MANY:
            ident = f"group:{parent}:{kind}"
            changed = any(leaf.state == "changed" for leaf in leaves)
            state = "changed" if changed else leaves[0].state
            words = f"{len(leaves):,} {kind.replace('_', ' ')}{'es' if kind.endswith('ch') else 's'}"
            nodes[ident], members[ident] = Node(ident, leaves[0].kind, words, state=state), tuple(leaves)
            for leaf in leaves:
                stand_in[leaf.id] = ident
                del nodes[leaf.id], members[leaf.id]
    edges = [Edge(edge.source, stand_in.get(edge.target, edge.target), edge.relation) for edge in graph.edges]
    return nodes, list(dict.fromkeys(edges)), members


def _columns(net: nx.DiGraph) -> tuple[list[list[str]], dict[tuple[str, str], list[str]]]:
    """Nodes by layer, with a lane in each layer that an edge crosses; and the lanes of each such edge.

    In `net` a crossing edge is replaced by the chain of its lanes.
    """
    layer: dict[str, int] = {}
    for ident in nx.topological_sort(net):
        layer[ident] = max((layer[parent] + 1 for parent in net.predecessors(ident)), default=0)
    columns: list[list[str]] = [[] for _ in range(max(layer.values()) + 1)]
    for ident in net.nodes:
        columns[layer[ident]].append(ident)
    lanes: dict[tuple[str, str], list[str]] = {}
    for source, target in list(net.edges):
        crossed = range(layer[source] + 1, layer[target])
        if crossed:
            chain = [f"lane:{source}:{target}:{number}" for number in crossed]
            for number, lane in zip(crossed, chain, strict=True):
                columns[number].append(lane)
            net.remove_edge(source, target)
            nx.add_path(net, [source, *chain, target])
            lanes[source, target] = chain
    return columns, lanes


def _sweep(net: nx.DiGraph, columns: list[list[str]]) -> None:
    """Order each column by the middle of its neighbours in the columns swept before, back and forth."""
    for sweep in range(_SWEEPS):
        forth = sweep % 2 == 0
        place = {ident: (at + 0.5) / len(column) for column in columns for at, ident in enumerate(column)}
        for column in columns if forth else reversed(columns):
            neighbours = net.predecessors if forth else net.successors
            weight = {ident: _middle([place[other] for other in neighbours(ident)], place[ident]) for ident in column}
            column.sort(key=lambda ident: weight[ident])
            place |= {ident: (at + 0.5) / len(column) for at, ident in enumerate(column)}


def _middle(places: Sequence[float], otherwise: float) -> float:
    return sum(places) / len(places) if places else otherwise
