"""Step 5: the same or nearly the same prompt and responses, with opposite preferences.

Surfaced in the report, and resolved by the rule in params; who loses is quarantined.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from data_contracts.records import Quarantined
from tasks.curation.near_duplicates import components
from tasks.curation.pair_texts import Content, Pools
from tasks.curation.params import ContradictionParams
from tasks.curation.verdicts import Item, Outcome, examples, quarantine

REASON = "contradiction"
_Member = tuple[Item, Content]


def resolve_contradictions(
    items: Sequence[Item], contents: Sequence[Content], pools: Pools, params: ContradictionParams
) -> tuple[Outcome, list[dict[str, Any]]]:
    """Set aside the losers of each contradiction, and describe every one.

    A description holds the ids and votes of both sides, and which side stayed (0, 1, or None for neither);
    side 0 is that of the earliest item.
    """
    rows: list[dict[str, Any]] = []
    verdicts: list[Quarantined] = []
    lost: set[int] = set()
    for sides in _find(items, contents, pools):
        winner = _winner(sides, params)
        rows.append(_describe(sides, winner))
        for side, members in enumerate(sides):
            if side != winner:
                lost.update(item.place for item in members)
                verdicts += [_loser(item, sides[1 - side], params) for item in members]
    return Outcome([item for item in items if item.place not in lost], quarantined=verdicts), rows


def _find(items: Sequence[Item], contents: Sequence[Content], pools: Pools) -> list[tuple[list[Item], list[Item]]]:
    """The two sides of each contradiction, in order of their earliest items."""
    rivals: dict[tuple[int, int, int], list[_Member]] = {}
    for item, content in zip(items, contents, strict=True):
        prompt, chosen, rejected = pools.groups(content)
        rivals.setdefault((prompt, min(chosen, rejected), max(chosen, rejected)), []).append((item, content))
    found = []
    for members in rivals.values():
        if len(members) > 1:
            found += _oppose(members, pools)
    return found


def _oppose(members: Sequence[_Member], pools: Pools) -> list[tuple[list[Item], list[Item]]]:
    """Split pairs that may contradict one another into connected sets of two sides."""
    same, opposite = _relations(members, pools)
    if not opposite:
        return []
    linked = components(len(members), np.array(same + opposite, dtype=np.int64).reshape(-1, 2))
    found = []
    for label in range(int(linked.max()) + 1):
        places = [int(place) for place in np.flatnonzero(linked == label)]
        if not any(left in places for left, _ in opposite):
            continue
        first = _same_side(places, opposite, same)
        sides = ([members[p][0] for p in places if p in first], [members[p][0] for p in places if p not in first])
        found.append(sides)
    return found


def _relations(members: Sequence[_Member], pools: Pools) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    same, opposite = [], []
    for right, (_, content) in enumerate(members):
        turned = Content(content.prompt, content.rejected, content.chosen)
        for left in range(right):
            other = members[left][1]
            if pools.alike(other, content):
                same.append((left, right))
            elif pools.alike(other, turned):
                opposite.append((left, right))
    return same, opposite


def _same_side(places: Sequence[int], opposite: Sequence[tuple[int, int]], same: Sequence[tuple[int, int]]) -> set[int]:
    """The members on the side of the first, walking same and opposite links breadth first."""
    side = {places[0]: 0}
    queue = [places[0]]
    links = [(*pair, 0) for pair in same] + [(*pair, 1) for pair in opposite]
    while queue:
        place = queue.pop(0)
        for left, right, turn in links:
            if place in (left, right):
                other = right if place == left else left
                if other not in side:
                    side[other] = side[place] ^ turn
                    queue.append(other)
    return {place for place, value in side.items() if value == 0}


def _winner(sides: tuple[list[Item], list[Item]], params: ContradictionParams) -> int | None:
    if params.resolve == "drop":
        return None
    if params.resolve == "keep_latest":
        newest = [max((item.latest, item.place) for item in side) for side in sides]
        return int(newest[1] > newest[0])
    votes = [_votes(side) for side in sides]
    return None if votes[0] == votes[1] else int(votes[1] > votes[0])


def _votes(side: Sequence[Item]) -> int:
    named = set().union(*(item.annotators for item in side))
    return len(named) + sum(item.unnamed for item in side)


def _describe(sides: tuple[list[Item], list[Item]], winner: int | None) -> dict[str, Any]:
    return {
        "ids": [[item.pair.id for item in side] for side in sides],
        "votes": [_votes(side) for side in sides],
        "kept": winner,
    }


def _loser(item: Item, other: Sequence[Item], params: ContradictionParams) -> Quarantined:
    return quarantine(
        item.pair,
        REASON,
        field="chosen",
        expected=f"one preference for one pair of responses (contradictions.resolve: {params.resolve})",
        found=f"the opposite preference in {examples([rival.pair.id for rival in other])}",
    )
