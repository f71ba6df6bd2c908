"""Step 6: train, validation and test, by whole clusters of near-duplicate prompts and of one conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b

import numpy as np

from plumbline.data_contracts.errors import CheckFailed
from plumbline.data_contracts.records import Message
from plumbline.tasks.data.curation.canonical import canonical
from plumbline.tasks.data.curation.near_duplicates import components
from plumbline.tasks.data.curation.pair_columns import Opening
from plumbline.tasks.data.curation.shingles import I64, U64
from plumbline.tasks.params.curation import SPLITS, MatchingParams, SplitParams


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


def conversation_clusters(requests: U64, kept: I64, groups: I64, openings: Sequence[Opening]) -> I64:
    """`conversations` of the rows `kept`, by hashes of their turns and of the beginnings of prompts with several.

    `groups` (k,) are those of the rows; a prompt of one turn counts where it is the beginning of another.
    """
    group = dict(zip(kept.tolist(), groups.tolist(), strict=True)) if openings else {}
    there = [opening for opening in openings if opening.row in group]
    begun = np.isin(requests[kept], np.array([opening.key for opening in there], dtype=np.uint64))
    first: dict[int, int] = {}
    for key, number in zip(requests[kept][begun].tolist(), groups[begun].tolist(), strict=True):
        first.setdefault(key, number)
    links = []
    for opening in there:
        if opening.answered or opening.key in first:
            links.append((first.setdefault(opening.key, group[opening.row]), group[opening.row]))
    size = int(groups.max(initial=-1)) + 1
    return components(size, np.array(links, dtype=np.int64).reshape(-1, 2))[groups]


def named_clusters(joined: I64, prompts: I64, texts: Sequence[str]) -> tuple[I64, list[str]]:
    """Clusters (n,) numbered from 0, and the name of each; `prompts` (n,) are numbers of sorted texts."""
    found, labels = np.unique(joined, return_inverse=True)
    first = np.full(len(found), len(texts), dtype=np.int64)
    np.minimum.at(first, labels, prompts)
    return labels.astype(np.int64), [cluster_name([texts[number]]) for number in first.tolist()]


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
        f"{', '.join(empty)} would be empty. Add pairs with other prompts, or set "
        f"split.on_empty to warn."
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
