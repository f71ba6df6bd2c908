"""Curation of preference pairs, in numbered steps. Nothing disappears: read = accepted + merged + quarantined.

1. leaked labels are cut, or the pair set aside       `leakage`
2. length limits                                      `limits`
3. exact duplicates are merged                        `exact`
4. copies with an edit are merged                     `near_merge`, by `evidence` over `near_duplicates`
5. contradictions of one prompt are resolved          `contradictions`; those of near prompts surfaced and kept
6. of one prompt at most so many pairs are kept       `per_prompt`
7. train, validation and test by cluster of prompts   `split`, near duplicates and turns of one conversation together

Steps 3 to 6 repeat until they change nothing, since how rare a shingle is depends on what is left: so curating
what was curated changes nothing.

Not covered: limits in tokens (training knows the tokenizer), paraphrases (no words shared), and near duplicates
by typing errors in texts of a few words (one edit of four words is another text).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from plumbline.data_contracts.progress import Progress, silent
from plumbline.data_contracts.records import CuratedPair, Merged, PreferencePair, Quarantined
from plumbline.tasks.data.curation.contradictions import opposed_near_prompts, resolve_contradictions
from plumbline.tasks.data.curation.exact import merge_exact
from plumbline.tasks.data.curation.leakage import clean_leaks
from plumbline.tasks.data.curation.limits import apply_limits
from plumbline.tasks.data.curation.near_merge import KeptNear, merge_near
from plumbline.tasks.data.curation.pair_texts import PairContent, Pools, build_pools, contents
from plumbline.tasks.data.curation.per_prompt import limit_per_prompt
from plumbline.tasks.data.curation.report import describe
from plumbline.tasks.data.curation.split import assign_clusters, cluster_name, conversations
from plumbline.tasks.data.curation.verdicts import CurationOutcome, Item
from plumbline.tasks.params.curation import SPLITS, CurationParams

_STEPS = 6


@dataclass(frozen=True, slots=True)
class Curated:
    """The curated set: three splits, what was folded or set aside, and the report (JSON-able)."""

    train: list[CuratedPair]
    validation: list[CuratedPair]
    test: list[CuratedPair]
    merged: list[Merged]
    quarantined: list[Quarantined]
    report: dict[str, Any]


def curate(pairs: Sequence[PreferencePair], params: CurationParams, seed: int, progress: Progress = silent) -> Curated:
    """Curate preference pairs. Deterministic in pairs, params and seed; pairs keep their order within a split.

    Raises `CheckFailed` when a split would be empty (`split.on_empty: error`).
    """
    items = [Item.of(pair, place) for place, pair in enumerate(pairs)]
    ledger = CurationOutcome(items)
    # 1. leaked labels
    if params.clean_leaks:
        progress(0, _STEPS, "leaked labels")
        _apply(ledger, clean_leaks(ledger.kept))
    # 2. length limits
    progress(1, _STEPS, "length limits")
    _apply(ledger, apply_limits(ledger.kept, params.limits))
    # 3 to 6. duplicates, contradictions and pairs of one prompt
    found, pools, contradictions, near = _match(ledger, params, seed, progress)
    # 7. split by cluster
    progress(5, _STEPS, "split by cluster")
    splits, warnings = _split(ledger.kept, found, pools, params, seed)
    opposed = opposed_near_prompts(ledger.kept, found, pools)
    report = describe(
        len(pairs), splits, ledger.merged, ledger.quarantined, contradictions, pools, params, opposed=opposed, near=near
    )
    _check(report, splits)
    progress(_STEPS, _STEPS, "curated")
    return Curated(
        **splits, merged=ledger.merged, quarantined=ledger.quarantined, report=report | {"warnings": warnings}
    )


def _apply(ledger: CurationOutcome, outcome: CurationOutcome) -> bool:
    """Enter a step's verdicts; True when it decided against any pair."""
    ledger.kept = outcome.kept
    ledger.merged += outcome.merged
    ledger.quarantined += outcome.quarantined
    return bool(outcome)


def _match(
    ledger: CurationOutcome, params: CurationParams, seed: int, progress: Progress
) -> tuple[list[PairContent], Pools, list[dict[str, Any]], list[KeptNear]]:
    contradictions: list[dict[str, Any]] = []
    while True:
        progress(2, _STEPS, f"exact duplicates among {len(ledger.kept)} pairs")
        found = contents(ledger.kept, params.matching)
        changed = _apply(ledger, merge_exact(ledger.kept, found))
        found = contents(ledger.kept, params.matching) if changed else found
        progress(3, _STEPS, f"near duplicates among {len(ledger.kept)} pairs")
        pools = build_pools(found, params.matching, seed)
        outcome, near = merge_near(ledger.kept, found, pools)
        changed = _apply(ledger, outcome)
        progress(4, _STEPS, f"contradictions among {len(ledger.kept)} pairs")
        found = contents(ledger.kept, params.matching) if changed else found
        outcome, rows = resolve_contradictions(ledger.kept, found, params.contradictions)
        contradictions += rows
        if _apply(ledger, outcome) or changed:
            continue
        # 6. pairs of one prompt
        if not _apply(ledger, limit_per_prompt(ledger.kept, found, pools, params.max_pairs_per_prompt)):
            return found, pools, contradictions, near


def _split(
    items: Sequence[Item], found: Sequence[PairContent], pools: Pools, params: CurationParams, seed: int
) -> tuple[dict[str, list[CuratedPair]], list[str]]:
    groups = [pools.prompts.group(content.prompt) for content in found]
    joined = conversations([item.pair.prompt for item in items], groups, params.matching).tolist()
    texts: dict[int, set[str]] = {}
    for content, label in zip(found, joined, strict=True):
        texts.setdefault(label, set()).add(content.prompt)
    names = {label: cluster_name(sorted(members)) for label, members in texts.items()}
    members = {names[label]: texts[label] for label in texts}
    clusters = [names[label] for label in joined]
    sizes: dict[str, int] = {}
    for cluster in clusters:
        sizes[cluster] = sizes.get(cluster, 0) + 1
    assigned, warnings = assign_clusters(sizes, params.split, seed, members)
    splits: dict[str, list[CuratedPair]] = {split: [] for split in SPLITS}
    for item, cluster in zip(items, clusters, strict=True):
        splits[assigned[cluster]].append(_curated(item, cluster))
    return splits, warnings


def _curated(item: Item, cluster: str) -> CuratedPair:
    fields = {name: getattr(item.pair, name) for name in PreferencePair.model_fields}
    return CuratedPair(**fields, cluster=cluster, cleaned=item.cleaned)


def _check(report: dict[str, Any], splits: dict[str, list[CuratedPair]]) -> None:
    assert report["read"] == report["accepted"] + report["merged"] + report["quarantined"], "a pair was lost"
    held = [{pair.cluster for pair in pairs} for pairs in splits.values()]
    assert sum(map(len, held)) == len(set().union(*held)), "a cluster of prompts crosses the split"
