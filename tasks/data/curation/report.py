"""The report of curation: what came in, the verdicts with their reasons, and figures of the data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from plumbline.data_contracts.records import Merged, Quarantined
from plumbline.tasks.data.curation.pair_texts import Pool, Pools
from plumbline.tasks.data.curation.shingles import I64
from plumbline.tasks.data.curation.templates import template_table
from plumbline.tasks.params.curation import CurationParams

_QUANTILES = {"min": 0.0, "p05": 0.05, "median": 0.5, "p95": 0.95, "max": 1.0}


@dataclass(frozen=True, slots=True)
class Accepted:
    """The n accepted pairs, in order: lengths of prompt, chosen and rejected, cluster, places of each split, cuts."""

    sizes: I64  # (n, 3)
    clusters: I64  # (n,) numbered from 0
    splits: Mapping[str, I64]
    cleaned: Sequence[Sequence[str]]


def describe(
    read: int,
    accepted: Accepted,
    merged: Sequence[Merged],
    quarantined: Sequence[Quarantined],
    contradictions: Sequence[Mapping[str, Any]],
    pools: Pools,
    params: CurationParams,
    *,
    opposed: Sequence[Mapping[str, Any]] = (),
    near: Sequence[Mapping[str, str]] = (),
) -> dict[str, Any]:
    """All figures of the report but the warnings, JSON-able.

    `opposed` are near prompts with opposite preferences, `near` the pairs that were kept though they are near another.
    """
    pairs = len(accepted.sizes)
    return {
        "read": read,
        "accepted": pairs,
        "merged": len(merged),
        "quarantined": len(quarantined),
        "reasons": dict(sorted(Counter([row.reason for row in merged] + [row.reason for row in quarantined]).items())),
        "cleaned": _cleaned(accepted.cleaned),
        "contradictions": {"count": len(contradictions), "listed": list(contradictions[: params.listed])},
        "opposed_near_prompts": {"count": len(opposed), "listed": list(opposed[: params.listed])},
        "clusters": _clusters(accepted.clusters),
        "near_duplicates": {
            name: _near(pool, params) for name, pool in (("prompts", pools.prompts), ("responses", pools.responses))
        }
        | {"merged": _why_merged(merged, params), "kept": {"count": len(near), "listed": list(near[: params.listed])}},
        "lengths": _lengths(accepted.sizes, params),
        "length_bias": length_bias(accepted.sizes),
        "splits": {name: _split(accepted.clusters[places], pairs) for name, places in accepted.splits.items()},
    }


def length_bias(sizes: I64) -> dict[str, Any]:
    """The share of pairs whose longer response was chosen, among those whose responses differ in length."""
    gaps = sizes[:, 1] - sizes[:, 2]
    unequal = int((gaps != 0).sum())
    share = int((gaps > 0).sum()) / unequal if unequal else None
    return {"longer_chosen": share, "unequal_pairs": unequal, "equal_pairs": len(gaps) - unequal}


def _cleaned(cleaned: Sequence[Sequence[str]]) -> dict[str, Any]:
    cuts = Counter(cut.split(": ", 2)[1] for found in cleaned for cut in found)
    return {"pairs": len(cleaned), "cuts": dict(sorted(cuts.items()))}


def _clusters(clusters: I64) -> dict[str, Any]:
    sizes = np.bincount(clusters)
    exponents = Counter(size.bit_length() - 1 for size in sizes.tolist())
    return {
        "count": len(sizes),
        "largest": int(sizes.max(initial=0)),
        "pairs_per_cluster": {_bin(exponent): exponents[exponent] for exponent in sorted(exponents)},
    }


def _bin(exponent: int) -> str:
    low, high = 2**exponent, 2 ** (exponent + 1) - 1
    return str(low) if low == high else f"{low}-{high}"


def _near(pool: Pool, params: CurationParams) -> dict[str, Any]:
    near = pool.near
    templates = template_table(near, params.matching)
    return {
        "distinct_texts": len(pool),
        "candidate_pairs": len(near.candidates),
        "verified_pairs": len(near.pairs),
        "groups_of_several": int((np.bincount(near.groups, minlength=1) > 1).sum()),
        "crowded_buckets": near.crowded,
        "templates": {"count": len(templates), "listed": templates[: params.listed]},
    }


def _why_merged(merged: Sequence[Merged], params: CurationParams) -> dict[str, Any]:
    """The merges that rest on evidence, and why each was made."""
    rows = [{"id": row.record_id, "into": row.into, "why": row.why} for row in merged if row.why is not None]
    return {"count": len(rows), "listed": rows[: params.listed]}


def _lengths(sizes: I64, params: CurationParams) -> dict[str, Any]:
    columns = zip(("prompt", "chosen", "rejected"), sizes.T, strict=True)
    return {"unit": params.limits.unit} | {name: _quantiles(values) for name, values in columns}


def _quantiles(values: I64) -> dict[str, float]:
    if not len(values):
        return {}
    return {name: float(np.quantile(values, share)) for name, share in _QUANTILES.items()} | {
        "mean": float(np.mean(values))
    }


def _split(clusters: I64, total: int) -> dict[str, Any]:
    share = len(clusters) / total if total else 0.0
    return {"pairs": len(clusters), "clusters": len(np.unique(clusters)), "share": share}
