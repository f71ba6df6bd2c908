"""The report of curation: what came in, the verdicts with their reasons, and figures of the data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from plumbline.data_contracts.records import CuratedPair, Merged, Quarantined
from plumbline.tasks.data.curation.limits import length
from plumbline.tasks.data.curation.pair_texts import Pool, Pools
from plumbline.tasks.data.curation.templates import template_table
from plumbline.tasks.params.curation import CurationParams

_QUANTILES = {"min": 0.0, "p05": 0.05, "median": 0.5, "p95": 0.95, "max": 1.0}


def describe(
    read: int,
    splits: Mapping[str, Sequence[CuratedPair]],
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
    accepted = [pair for pairs in splits.values() for pair in pairs]
    return {
        "read": read,
        "accepted": len(accepted),
        "merged": len(merged),
        "quarantined": len(quarantined),
        "reasons": dict(sorted(Counter([row.reason for row in merged] + [row.reason for row in quarantined]).items())),
        "cleaned": _cleaned(accepted),
        "contradictions": {"count": len(contradictions), "listed": list(contradictions[: params.listed])},
        "opposed_near_prompts": {"count": len(opposed), "listed": list(opposed[: params.listed])},
        "clusters": _clusters(accepted),
        "near_duplicates": {
            name: _near(pool, params) for name, pool in (("prompts", pools.prompts), ("responses", pools.responses))
        }
        | {"merged": _why_merged(merged, params), "kept": {"count": len(near), "listed": list(near[: params.listed])}},
        "lengths": _lengths(accepted, params),
        "length_bias": length_bias(accepted, params),
        "splits": {name: _split(pairs, len(accepted)) for name, pairs in splits.items()},
    }


def length_bias(pairs: Sequence[CuratedPair], params: CurationParams) -> dict[str, Any]:
    """The share of pairs whose longer response was chosen, among those whose responses differ in length."""
    unit = params.limits.unit
    longer = [length(p.chosen, unit) - length(p.rejected, unit) for p in pairs]
    unequal = [gap for gap in longer if gap != 0]
    share = sum(gap > 0 for gap in unequal) / len(unequal) if unequal else None
    return {"longer_chosen": share, "unequal_pairs": len(unequal), "equal_pairs": len(longer) - len(unequal)}


def _cleaned(pairs: Sequence[CuratedPair]) -> dict[str, Any]:
    cuts = Counter(cut.split(": ", 2)[1] for pair in pairs for cut in pair.cleaned)
    return {"pairs": sum(bool(pair.cleaned) for pair in pairs), "cuts": dict(sorted(cuts.items()))}


def _clusters(pairs: Sequence[CuratedPair]) -> dict[str, Any]:
    sizes = Counter(pair.cluster for pair in pairs)
    exponents = Counter(size.bit_length() - 1 for size in sizes.values())
    return {
        "count": len(sizes),
        "largest": max(sizes.values(), default=0),
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


def _lengths(pairs: Sequence[CuratedPair], params: CurationParams) -> dict[str, Any]:
    unit = params.limits.unit
    columns = {
        "prompt": [sum(length(message.content, unit) for message in pair.prompt) for pair in pairs],
        "chosen": [length(pair.chosen, unit) for pair in pairs],
        "rejected": [length(pair.rejected, unit) for pair in pairs],
    }
    return {"unit": unit} | {name: _quantiles(values) for name, values in columns.items()}


def _quantiles(values: Sequence[int]) -> dict[str, float]:
    if not values:
        return {}
    return {name: float(np.quantile(values, share)) for name, share in _QUANTILES.items()} | {
        "mean": float(np.mean(values))
    }


def _split(pairs: Sequence[CuratedPair], total: int) -> dict[str, Any]:
    share = len(pairs) / total if total else 0.0
    return {"pairs": len(pairs), "clusters": len({pair.cluster for pair in pairs}), "share": share}
