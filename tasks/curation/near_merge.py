"""Step 4: pairs whose prompt, chosen and rejected are each the same or a verified near duplicate."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.curation.pair_texts import Content, Pools
from tasks.curation.verdicts import Item, Outcome, merge

REASON = "near_duplicate"


def merge_near(items: Sequence[Item], contents: Sequence[Content], pools: Pools) -> Outcome:
    """Fold every item into the first kept one that it was verified against.

    Every merge rests on a verified resemblance to the kept pair itself: a chain A ~ B ~ C does not fold C
    into A unless C ~ A.
    """
    outcome = Outcome([])
    kept: dict[tuple[int, int, int], list[tuple[Item, Content]]] = {}
    for item, content in zip(items, contents, strict=True):
        rivals = kept.setdefault(pools.groups(content), [])
        into = next((other for other, found in rivals if pools.alike(found, content)), None)
        if into is None:
            rivals.append((item, content))
            outcome.kept.append(item)
        else:
            outcome.merged.append(merge(item, into, REASON))
    return outcome
