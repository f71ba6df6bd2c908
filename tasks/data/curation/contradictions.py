"""Step 5: one prompt and one pair of responses with opposite preferences.

A contradiction needs the same prompt, with every turn and the system prompt, and the same two responses; both compare
in canonical form, responses without the punctuation that ends a word as well. It is surfaced in the report and
resolved by the rule in params; who loses is quarantined.

Opposite preferences for prompts that are only near one another contradict nothing: the words that differ may be what
turned the preference. They are kept, and `opposed_near_prompts` lists them for the report.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

from plumbline.data_contracts.records import Quarantined
from plumbline.tasks.data.curation.pair_texts import PairContent, Pools
from plumbline.tasks.data.curation.verdicts import CurationOutcome, Item, examples, quarantine
from plumbline.tasks.params.curation import ContradictionParams

REASON = "contradiction"
_Sides = tuple[list[Item], list[Item]]


def resolve_contradictions(
    items: Sequence[Item], contents: Sequence[PairContent], params: ContradictionParams
) -> tuple[CurationOutcome, list[dict[str, Any]]]:
    """Set aside the losers of each contradiction, and describe every one.

    A description holds the ids and votes of both sides, and which side stayed (0, 1, or None for neither);
    side 0 is that of the earliest item.
    """
    rows: list[dict[str, Any]] = []
    verdicts: list[Quarantined] = []
    lost: set[int] = set()
    for sides in _opposed(items, contents, [content.request() for content in contents]):
        winner = _winner(sides, params)
        rows.append(_describe(sides, winner))
        for side, members in enumerate(sides):
            if side != winner:
                lost.update(item.place for item in members)
                verdicts += [_loser(item, sides[1 - side], params) for item in members]
    return CurationOutcome([item for item in items if item.place not in lost], quarantined=verdicts), rows


def opposed_near_prompts(items: Sequence[Item], contents: Sequence[PairContent], pools: Pools) -> list[dict[str, Any]]:
    """Groups of near, unequal prompts whose pairs hold the same two responses and prefer opposite ones, with their ids.

    Call it when no contradiction is left: then the prompts of the two sides differ.
    """
    sides = _opposed(items, contents, [pools.prompts.group(content.prompt) for content in contents])
    return [{"ids": [[item.pair.id for item in side] for side in two]} for two in sides]


def _opposed(items: Sequence[Item], contents: Sequence[PairContent], prompts: Sequence[Hashable]) -> list[_Sides]:
    """The two sides of each opposition between pairs that share a prompt (a key) and both responses.

    In order of their earliest items.
    """
    found: dict[Hashable, tuple[str, _Sides]] = {}
    asked = Counter(prompts)
    for item, content, prompt in zip(items, contents, prompts, strict=True):
        if asked[prompt] == 1:
            continue
        chosen, rejected = content.said()
        first, sides = found.setdefault((prompt, frozenset((chosen, rejected))), (chosen, ([], [])))
        sides[chosen != first].append(item)
    return [sides for _, sides in found.values() if sides[1]]


def _winner(sides: _Sides, params: ContradictionParams) -> int | None:
    if params.resolve == "drop":
        return None
    if params.resolve == "keep_latest":
        newest = [max((item.latest, item.place) for item in side) for side in sides]
        return int(newest[1] > newest[0])
    votes = [_votes(side) for side in sides]
    return None if votes[0] == votes[1] else int(votes[1] > votes[0])


def _votes(side: Sequence[Item]) -> int:
    return len(set().union(*(item.voters for item in side)))


def _describe(sides: _Sides, winner: int | None) -> dict[str, Any]:
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
