"""The lineage of one model version as a graph, and its JSON.

An edge points from what rests on something to what it rests on: from the version down to a raw batch. The JSON schema
is stable (`SCHEMA`, `SCHEMA_VERSION`): keys, kinds and relations may be added, never renamed or removed.

```
{"schema": "plumbline.lineage", "version": 1, "model_uri": …, "verified": true | false | null, "problems": [text],
 "nodes": [{"id", "kind", "label", "digest", "state", "facts": {name: value}}],
 "edges": [{"from": id, "to": id, "relation"}]}
```

`verified` is null, and every `state` "unchecked", if nothing was re-hashed. All texts are data, from feedback and
from models as well: whoever shows them escapes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

SCHEMA, SCHEMA_VERSION = "plumbline.lineage", 1

Kind = Literal[
    "model_version",
    "alias",
    "approval",
    "trigger",
    "run",
    "gate",
    "evaluation",
    "policy",
    "policy_stage",
    "reference",
    "base",
    "reward_model",
    "lengths",
    "held_out_judge",
    "dataset",
    "records",
    "batch",
    "contract",
    "quarantine",
    "annotator",
    "token",
    "judge_prompt",
    "params",
    "code",
    "environment",
]
Relation = Literal[
    "made-from",
    "read",
    "contains",
    "held-to",
    "labelled-by",
    "sent-by",
    "judged-by",
    "evaluated-by",
    "decided-by",
    "approved-by",
    "triggered-by",
    "run-by",
    "configured-by",
    "ran-in",
    "built-with",
    "set-aside",
    "named-by",
]
State = Literal["ok", "changed", "unchecked"]


@dataclass(frozen=True, slots=True)
class Node:
    """One thing in the lineage. `digest` is its hash, empty if it has none; `facts` are for people."""

    id: str
    kind: Kind
    label: str
    digest: str = ""
    state: State = "unchecked"
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Edge:
    """`source` rests on `target`, by node ids."""

    source: str
    target: str
    relation: Relation


@dataclass(slots=True)
class Graph:
    """Nodes by id, in the order in which they were found, and typed edges."""

    model_uri: str
    nodes: dict[str, Node] = field(default_factory=dict)
    edges: list[Edge] = field(default_factory=list)

    def add(self, node: Node, source: str | None = None, relation: Relation = "made-from") -> str:
        """Add a node, or keep the one of its id, and the edge to it from `source`. Returns its id."""
        self.nodes.setdefault(node.id, node)
        if source is not None:
            self.link(source, node.id, relation)
        return node.id

    def link(self, source: str, target: str, relation: Relation) -> None:
        """Add an edge, once."""
        edge = Edge(source, target, relation)
        if edge not in self.edges:
            self.edges.append(edge)

    def as_dict(self, verified: bool | None, problems: list[str]) -> dict[str, Any]:
        """The JSON of the module's docstring."""
        return {
            "schema": SCHEMA,
            "version": SCHEMA_VERSION,
            "model_uri": self.model_uri,
            "verified": verified,
            "problems": problems,
            "nodes": [asdict(node) for node in self.nodes.values()],
            "edges": [{"from": edge.source, "to": edge.target, "relation": edge.relation} for edge in self.edges],
        }
