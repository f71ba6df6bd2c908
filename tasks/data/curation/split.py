"""Step 6: train, validation and test, by whole clusters of near-duplicate prompts and of one conversation."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from hashlib import blake2b

import numpy as np

from plumbline.data_contracts.errors import CheckFailed
from plumbline.data_contracts.records import Message
from plumbline.tasks.data.curation.canonical import canonical
from plumbline.tasks.data.curation.near_duplicates import components
from plumbline.tasks.data.curation.shingles import I64
from plumbline.tasks.params.curation import SPLITS, MatchingParams, SplitParams

_UNEVEN = 0.05
"""Largest difference from a share of params without a warning."""


def cluster_name(texts: list[str]) -> str:
    """Name of a cluster: BLAKE2b of its first text in sorted order, so that the same texts give the same name."""
    return blake2b(min(texts).encode(), digest_size=8).hexdigest()


def conversations(prompts: Sequence[tuple[Message, ...]], groups: Sequence[int], params: MatchingParams) -> I64:
    """The cluster (n,) of each of n prompts: their groups of near duplicates, joined where they are one conversation.

    A conversation is compared at several of its turns: the prompt at a later one holds the earlier prompt and a
    response to it, so the two may not stand on both sides of a split. Prompts join where one is the beginning of the
    other, and where both begin with the same turns up to the first of the assistant. A shared first question alone
    joins nothing: people open with the same few words.
    """
    turns = [tuple((turn.role, canonical(turn.content, params)) for turn in prompt) for prompt in prompts]
    first: dict[tuple[tuple[str, str], ...], int] = {}
    for prompt, group in zip(turns, groups, strict=True):
        first.setdefault(prompt, group)
    links = []
    for prompt, group in zip(turns, groups, strict=True):
        opened = next((place for place, (role, _) in enumerate(prompt) if role == "assistant"), len(prompt))
        for end in range(1, len(prompt)):
            # of beginnings that hold a turn of the assistant the shortest is enough, since the others hold it too
            if end == opened + 1 or prompt[:end] in first:
                links.append((first.setdefault(prompt[:end], group), group))
    joined = components(max(groups, default=-1) + 1, np.array(links, dtype=np.int64).reshape(-1, 2))
    return joined[np.array(groups, dtype=np.int64)]


def assign_clusters(
    sizes: Mapping[str, int], params: SplitParams, seed: int, members: Mapping[str, Collection[str]]
) -> tuple[dict[str, str], list[str]]:
    """The split of each cluster, given its number of pairs and the texts of its prompts, and warnings.

    The order of the input does not matter. A split left empty takes the smallest cluster from the split with the most
    clusters. Raises `CheckFailed` when a share above 0 stays empty and `on_empty` is `error`.
    """
    shares = {split: share for split, share in params.fractions().items() if share > 0}
    if params.by == "hash":
        assigned = {name: _split_at(_place(members[name], params.seed), shares) for name in sorted(sizes)}
    else:
        assigned = _by_size(sizes, shares, seed)
    _fill_empty(assigned, sizes, list(shares), seed)
    empty = [split for split in shares if split not in assigned.values()]
    if not empty:
        return assigned, _uneven(assigned, sizes, shares) if params.by == "hash" else []
    message = (
        f"split: expected pairs in {', '.join(shares)}, found {len(sizes)} cluster(s) of near-duplicate prompts, so "
        f"{', '.join(empty)} would be empty. Add pairs with other prompts, or set "
        f"split.on_empty to warn."
    )
    if params.on_empty == "error":
        raise CheckFailed(message)
    return assigned, [message]


def _by_size(sizes: Mapping[str, int], shares: Mapping[str, float], seed: int) -> dict[str, str]:
    """Greedy: clusters from large to small, each to the split that lacks the most pairs of its share.

    Clusters of about one size (within a power of two) are taken in the order of a hash seeded by `seed`, so chance and
    not content decides where they go.
    """
    lacking = {split: share * sum(sizes.values()) for split, share in shares.items()}
    assigned: dict[str, str] = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name].bit_length(), _draw(name, seed), name)):
        split = max(shares, key=lambda split: (lacking[split], -SPLITS.index(split)))
        assigned[name] = split
        lacking[split] -= sizes[name]
    return assigned


def _place(texts: Collection[str], seed: int) -> float:
    """The place of a cluster in [0, 1), uniform: a second digest of the text whose first digest is least.

    A text that joins a cluster of n moves it with chance 1 / (n + 1) at most, and no other change of the data does.
    """
    first = min(texts, key=lambda text: (_draw(text, seed), text))
    return int.from_bytes(_draw(f"place:{first}", seed)) / 2**64


def _split_at(place: float, shares: Mapping[str, float]) -> str:
    """The split at a place. Test begins at 0, so that a larger share of it keeps what it held."""
    end = 0.0
    for split in reversed(SPLITS):
        end += shares.get(split, 0.0)
        if place < end:
            return split
    return next(split for split in SPLITS if split in shares)  # the shares add up to a rounding less than 1


def _uneven(assigned: Mapping[str, str], sizes: Mapping[str, int], shares: Mapping[str, float]) -> list[str]:
    """A warning if chance gave the splits other shares than params name, as it does among few clusters."""
    held = dict.fromkeys(shares, 0)
    for name, split in assigned.items():
        held[split] += sizes[name]
    found = {split: count / sum(sizes.values()) for split, count in held.items()}
    if all(abs(found[split] - share) <= _UNEVEN for split, share in shares.items()):
        return []
    told = ", ".join(
        f"{split} {found[split]:.0%} of the pairs instead of {share:.0%}" for split, share in shares.items()
    )
    return [f"split: {told}. Clusters of prompts are few ({len(sizes)}). Set split.by to size to meet the shares."]


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
