"""Step 6: at most so many pairs of one prompt and its near duplicates, the best supported ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime

from plumbline.data_contracts.records import Merged
from plumbline.tasks.data.curation.pair_texts import PairContent, Pools
from plumbline.tasks.data.curation.verdicts import CurationOutcome, Item

REASON = "over_prompt_limit"


def limit_per_prompt(
    items: Sequence[Item], found: Sequence[PairContent], pools: Pools, most: int | None
) -> CurationOutcome:
    """Keep of each group of near-duplicate prompts the `most` pairs with the most votes, then the latest.

    The others are merged into the first of the kept. Their votes are for other responses, and stay with them. None
    keeps all.
    """
    if most is None:
        return CurationOutcome(list(items))
    groups: dict[int, list[Item]] = defaultdict(list)
    for item, content in zip(items, found, strict=True):
        groups[pools.prompts.group(content.prompt)].append(item)
    ranked = [sorted(group, key=_support, reverse=True) for group in groups.values()]
    into = {item.place: group[0] for group in ranked for item in group[most:]}
    return CurationOutcome(
        [item for item in items if item.place not in into],
        merged=[_merged(item, into[item.place], most) for item in items if item.place in into],
    )


def _support(item: Item) -> tuple[int, datetime, int]:
    """Votes, time, and the earlier place."""
    return item.votes, item.latest, -item.place


def _merged(item: Item, into: Item, most: int) -> Merged:
    why = f"curation.max_pairs_per_prompt is {most}; {item.votes} votes, {into.votes} for the pair that stays"
    return Merged(record_id=item.pair.id, into=into.pair.id, reason=REASON, why=why, origin=item.pair.origin)
