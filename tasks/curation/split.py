"""Step 6: train, validation and test, by whole clusters of near-duplicate prompts."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b

from data_contracts.errors import CheckFailed
from tasks.curation.params import SPLITS, SplitParams


def cluster_name(texts: list[str]) -> str:
    """Name of a cluster: BLAKE2b of its first text in sorted order, so that the same texts give the same name."""
    return blake2b(min(texts).encode(), digest_size=8).hexdigest()


def assign_clusters(sizes: Mapping[str, int], params: SplitParams, seed: int) -> tuple[dict[str, str], list[str]]:
    """The split of each cluster, given its number of pairs, and warnings.

    Greedy: clusters from large to small, each to the split that lacks the most pairs of its share. Clusters of
    about one size (within a power of two) are taken in the order of a hash seeded by `seed`, so chance and not
    content decides where they go, and the order of the input does not matter. A split left empty takes the
    smallest cluster from the split with the most clusters.

    Raises `CheckFailed` when a share above 0 stays empty and `on_empty` is `error`.
    """
    shares = {split: share for split, share in params.fractions().items() if share > 0}
    lacking = {split: share * sum(sizes.values()) for split, share in shares.items()}
    assigned: dict[str, str] = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name].bit_length(), _draw(name, seed), name)):
        split = max(shares, key=lambda split: (lacking[split], -SPLITS.index(split)))
        assigned[name] = split
        lacking[split] -= sizes[name]
    _fill_empty(assigned, sizes, list(shares), seed)
    empty = [split for split in shares if split not in assigned.values()]
    if not empty:
        return assigned, []
    message = (
        f"split: expected pairs in {', '.join(shares)}, found {len(sizes)} cluster(s) of near-duplicate prompts, so "
        f"{', '.join(empty)} would be empty. Add pairs with other prompts, set the share of {', '.join(empty)} to 0, "
        f"or set split.on_empty to warn."
    )
    if params.on_empty == "error":
        raise CheckFailed(message)
    return assigned, [message]


def _fill_empty(assigned: dict[str, str], sizes: Mapping[str, int], shares: list[str], seed: int) -> None:
    for split in shares:
        if split in assigned.values():
            continue
        held = {other: [name for name in assigned if assigned[name] == other] for other in shares}
        donor = max(held.values(), key=len)
        if len(donor) > 1:
            assigned[min(donor, key=lambda name: (sizes[name], _draw(name, seed), name))] = split


def _draw(name: str, seed: int) -> bytes:
    return blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
