"""Step 4: pairs that were handed in again with an edit.

Prompt, chosen and rejected are each the same or verified near duplicates, and together they are too alike to be chance
(`evidence`). Near prompts alone are several requests until the responses prove otherwise.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from itertools import combinations

from plumbline.tasks.data.curation.evidence import PRIOR, EditEvidence, Spread
from plumbline.tasks.data.curation.pair_texts import PairContent, Pools
from plumbline.tasks.data.curation.verdicts import CurationOutcome, Item, merge
from plumbline.tasks.data.curation.wording import LIGHT

REASON = "near_duplicate"
KeptNear = dict[str, str]
"""A pair that is kept though it is near another: its id, that of the other (`near`), and `why`."""


def merge_near(
    items: Sequence[Item], contents: Sequence[PairContent], pools: Pools, spread: Spread | None = None
) -> tuple[CurationOutcome, list[KeptNear]]:
    """Fold every item into the first kept one that it is a copy of; also what was near and is no copy.

    Pairs whose prompt is near no other may be left out, if `spread` counts them.

    Every merge rests on evidence between the two pairs themselves: a chain A ~ B ~ C does not fold C
    into A unless C ~ A.
    """
    rivals: dict[tuple[int, int, int], list[int]] = defaultdict(list)
    for place, content in enumerate(contents):
        rivals[pools.groups(content)].append(place)
    several = [places for places in rivals.values() if len(places) > 1]
    evidence = EditEvidence(items, contents, pools, sorted(place for places in several for place in places), spread)
    # 1. near pairs of different requests, all of them before the first is judged
    near: dict[int, list[int]] = defaultdict(list)
    for left, right in _near_requests(several, contents, pools, evidence):
        near[right].append(left)
        evidence.note(left, right)
    # 2. verdicts, in the order of the input
    outcome, unlike = CurationOutcome([]), []
    folded = set[int]()
    same: dict[Hashable, list[int]] = defaultdict(list)
    compared = {place for places in several for place in places}
    for place, item in enumerate(items):
        if place not in compared:
            outcome.kept.append(item)
            continue
        key = pools.groups(contents[place]), evidence.asked(place)
        again = [other for other in same[key] if pools.alike_responses(contents[other], contents[place])]
        against: KeptNear = {}
        for other in sorted([*again, *(left for left in near[place] if left not in folded)]):
            found = evidence.judge(other, place)
            if found.copy:
                outcome.merged.append(merge(item, items[other], REASON, found.reason))
                folded.add(place)
                break
            against = against or {"id": item.pair.id, "near": items[other].pair.id, "why": found.reason}
        else:
            outcome.kept.append(item)
            same[key].append(place)
            unlike += [against] if against else []
    return outcome, unlike


def _near_requests(
    several: Sequence[Sequence[int]], contents: Sequence[PairContent], pools: Pools, evidence: EditEvidence
) -> list[tuple[int, int]]:
    """Alike pairs that ask for different things, where their responses are long enough to prove anything."""
    found = []
    for places in several:
        telling = [place for place in places if evidence.most(place) >= PRIOR + LIGHT]
        for left, right in combinations(telling, 2):
            if pools.alike(contents[left], contents[right]) and evidence.asked(left) != evidence.asked(right):
                found.append((left, right))
    return found
