"""Step 3: exact duplicates, the same canonical prompt, chosen and rejected."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from plumbline.tasks.data.curation.verdicts import CurationOutcome, Item, merge

REASON = "exact_duplicate"


def merge_exact(items: Sequence[Item], keys: Sequence[Hashable]) -> CurationOutcome:
    """Fold every item into the first that has the same key; `keys` holds one canonical content an item."""
    outcome = CurationOutcome([])
    first: dict[Hashable, Item] = {}
    for item, key in zip(items, keys, strict=True):
        kept = first.setdefault(key, item)
        if kept is item:
            outcome.kept.append(item)
        else:
            outcome.merged.append(merge(item, kept, REASON))
    return outcome
