"""Curation of preference pairs, in numbered steps. Nothing disappears: read = accepted + merged + quarantined.

1. leaked labels are cut, or the pair set aside       `leakage`
2. length limits                                      `limits`
3. exact duplicates are merged                        `exact`
4. copies with an edit are merged                     `near_merge`, by `evidence` over `near_duplicates`
5. contradictions of one prompt are resolved          `contradictions`; those of near prompts surfaced and kept
6. train, validation and test by cluster of prompts   `split`, near duplicates and turns of one conversation together

Steps 3 to 5 repeat until they change nothing, since how rare a shingle is depends on what is left: so curating
what was curated changes nothing.

Not covered: limits in tokens (training knows the tokenizer), paraphrases (no words shared), and near duplicates
by typing errors in texts of a few words (one edit of four words is another text).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from plumbline.data_contracts.progress import Progress, silent
from plumbline.data_contracts.records import PreferencePair
from plumbline.tasks.data.curation.contradictions import opposed_near_prompts, resolve_contradictions
from plumbline.tasks.data.curation.curated import Clusters, Curated, CuratedRows
from plumbline.tasks.data.curation.evidence import Spread
from plumbline.tasks.data.curation.exact import merge_exact
from plumbline.tasks.data.curation.ledger import Ledger
from plumbline.tasks.data.curation.near_merge import KeptNear, merge_near
from plumbline.tasks.data.curation.pair_columns import read_columns
from plumbline.tasks.data.curation.pair_source import PairList, PairSource
from plumbline.tasks.data.curation.pair_texts import Corpus, Pools, pools_of
from plumbline.tasks.data.curation.report import Accepted, describe
from plumbline.tasks.data.curation.shingles import I64, mix, repeated
from plumbline.tasks.data.curation.split import assign_clusters, conversation_clusters, named_clusters
from plumbline.tasks.data.curation.wording import plain_request
from plumbline.tasks.params.curation import SPLITS, CurationParams

_STEPS = 6


@dataclass(frozen=True, slots=True)
class _Matched:
    """The last round: the pools, the group of each kept pair's prompt, and the rows that share theirs with others."""

    pools: Pools
    groups: I64
    rivals: I64
    contradictions: list[dict[str, Any]]
    near: list[KeptNear]


def curate(pairs: Sequence[PreferencePair], params: CurationParams, seed: int, progress: Progress = silent) -> Curated:
    """Curate preference pairs. Deterministic in pairs, params and seed; pairs keep their order within a split.

    Raises `CheckFailed` when a split would be empty (`split.on_empty: error`).
    """
    return curate_rows(PairList(pairs), params, seed, progress).whole()


def curate_rows(source: PairSource, params: CurationParams, seed: int, progress: Progress = silent) -> CuratedRows:
    """`curate` of pairs whose texts stay where they are: memory holds a few numbers for each, and the prompts."""
    # 1, 2. leaked labels and length limits
    progress(0, _STEPS, "leaked labels and length limits")
    ledger = Ledger(source, read_columns(source, params), params.matching)
    # 3, 4, 5. duplicates and contradictions
    matched = _match(ledger, params, seed, progress)
    # 6. split by cluster
    progress(5, _STEPS, "split by cluster")
    clusters, splits, warnings = _split(ledger, matched.groups, params, seed)
    rivals = ledger.items(matched.rivals), ledger.contents(matched.rivals)
    kept = ledger.kept
    report = describe(
        len(source),
        Accepted(ledger.columns.sizes[kept], clusters.labels, splits, ledger.cleaned(kept)),
        ledger.merged,
        ledger.quarantined,
        matched.contradictions,
        matched.pools,
        params,
        opposed=opposed_near_prompts(*rivals, matched.pools),
        near=matched.near,
    )
    _check(report, clusters, splits)
    progress(_STEPS, _STEPS, "curated")
    return CuratedRows(ledger, clusters, splits, report | {"warnings": warnings})


def _match(ledger: Ledger, params: CurationParams, seed: int, progress: Progress) -> _Matched:
    columns = ledger.columns
    prompts, responses = Corpus(params.matching, seed, plain_request), Corpus(params.matching, seed)
    prompts.learn(columns.prompts)
    contradictions: list[dict[str, Any]] = []
    while True:
        progress(2, _STEPS, f"exact duplicates among {len(ledger.kept)} pairs")
        _merge_exact(ledger)
        progress(3, _STEPS, f"near duplicates among {len(ledger.kept)} pairs")
        pool = prompts.among(np.unique(columns.prompt[ledger.kept]))
        groups = pool.groups[columns.prompt[ledger.kept]]
        rivals = ledger.kept[np.bincount(groups, minlength=1)[groups] > 1]
        pools = pools_of(pool, ledger.contents(rivals), responses)
        outcome, near = merge_near(
            ledger.items(rivals), ledger.contents(rivals), pools, _spread(ledger, groups, rivals)
        )
        changed = ledger.apply(rivals, outcome)
        progress(4, _STEPS, f"contradictions among {len(ledger.kept)} pairs")
        asked = ledger.kept[repeated(columns.request[ledger.kept])]
        outcome, rows = resolve_contradictions(ledger.items(asked), ledger.contents(asked), params.contradictions)
        contradictions += rows
        if not (ledger.apply(asked, outcome) or changed):
            return _Matched(pools, groups, rivals, contradictions, near)


def _merge_exact(ledger: Ledger) -> None:
    columns, kept = ledger.columns, ledger.kept
    keys = np.column_stack([columns.request, columns.chosen, columns.rejected])[kept]
    alike = repeated(mix(mix(keys[:, 0]) * np.uint64(31) + keys[:, 1]) * np.uint64(31) + keys[:, 2])
    ledger.apply(kept[alike], merge_exact(ledger.items(kept[alike]), list(map(tuple, keys[alike].tolist()))))


def _spread(ledger: Ledger, groups: I64, rivals: I64) -> Spread:
    """In how many groups of prompts, over all pairs that are left, each response of the rivals occurs."""
    columns, kept = ledger.columns, ledger.kept
    said = np.concatenate([columns.chosen[kept], columns.rejected[kept]])
    wanted, names = np.concatenate([columns.chosen[rivals], columns.rejected[rivals]]), ledger.contents(rivals)
    there = np.isin(said, wanted)
    held = np.unique(np.column_stack([said[there], np.tile(groups, 2)[there].astype(np.uint64)]), axis=0)
    counts = dict(zip(*(found.tolist() for found in np.unique(held[:, 0], return_counts=True)), strict=True))
    texts = [*(each.chosen for each in names), *(each.rejected for each in names)]
    return Spread({text: counts[key] for text, key in zip(texts, wanted.tolist(), strict=True)}, len(np.unique(groups)))


def _split(
    ledger: Ledger, groups: I64, params: CurationParams, seed: int
) -> tuple[Clusters, dict[str, I64], list[str]]:
    columns, kept = ledger.columns, ledger.kept
    joined = conversation_clusters(columns.request, kept, groups, columns.openings)
    labels, names = named_clusters(joined, columns.prompt[kept], columns.prompts)
    sizes = dict(zip(names, np.bincount(labels, minlength=len(names)).tolist(), strict=True))
    assigned, warnings = assign_clusters(sizes, params.split, seed)
    numbers = np.array([SPLITS.index(assigned[name]) for name in names], dtype=np.int64)[labels]
    splits = {split: np.flatnonzero(numbers == number) for number, split in enumerate(SPLITS)}
    return Clusters(kept, labels, names), splits, warnings


def _check(report: dict[str, Any], clusters: Clusters, splits: dict[str, I64]) -> None:
    assert report["read"] == report["accepted"] + report["merged"] + report["quarantined"], "a pair was lost"
    held = [np.unique(clusters.labels[places]) for places in splits.values()]
    assert sum(map(len, held)) == len(clusters.names), "a cluster of prompts crosses the split"
