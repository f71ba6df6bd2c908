"""Stage `curate`: clean, de-duplicate, resolve contradictions and split the accepted pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from data_contracts.artifact import read_artifact, write_json
from data_contracts.errors import ContractViolation
from data_contracts.records import PreferencePair, dump_jsonl, load_jsonl
from tasks.curation.curate import Curated, curate
from tasks.curation.params import CurationParams
from tasks.stage import Facts, Stage, StageContext


def curate_preferences(context: StageContext, *, seed: int, curation: CurationParams) -> Facts:
    """Write the three splits and account for every pair that is in none of them."""
    validated = read_artifact(context.dep("validated"))
    pairs = list(load_jsonl(validated.path / "accepted.jsonl", PreferencePair))
    curated = curate(pairs, curation, seed, context.progress)
    splits = {"train": curated.train, "validation": curated.validation, "test": curated.test}
    for name, records in splits.items():
        dump_jsonl(context.folder / f"{name}.jsonl", records)
    dump_jsonl(context.folder / "merged.jsonl", curated.merged)
    dump_jsonl(context.folder / "quarantine.jsonl", curated.quarantined)
    write_json(context.folder / "report.json", curated.report)
    return account(validated.facts, curated)


def account(validated: Mapping[str, Any], curated: Curated) -> Facts:
    """Close the books over validation and curation: `read = accepted + merged + quarantined`.

    `reasons` counts the quarantined by reason, `merged_reasons` the merged.

    Raises `ContractViolation` when they do not close, which would mean that a record was lost.
    """
    splits = {"train": len(curated.train), "validation": len(curated.validation), "test": len(curated.test)}
    reasons = Counter(validated["reasons"]) + Counter(row.reason for row in curated.quarantined)
    merged_reasons = Counter(row.reason for row in curated.merged)
    read, accepted, merged = validated["read"], sum(splits.values()), merged_reasons.total()
    quarantined = validated["quarantined"] + len(curated.quarantined)
    if read != accepted + merged + quarantined:
        raise ContractViolation(
            f"curation lost count: read {read} != accepted {accepted} + merged {merged} + "
            f"quarantined {quarantined}. This is a defect of plumbline, please report it."
        )
    return {
        "read": read,
        "accepted": accepted,
        "merged": merged,
        "quarantined": quarantined,
        "reasons": dict(sorted(reasons.items())),
        "merged_reasons": dict(sorted(merged_reasons.items())),
        "splits": splits,
    }


STAGE = Stage(
    name="curate",
    title="Curate preferences",
    body=curate_preferences,
    deps={"validated": "data/validated"},
    params=("seed", "curation"),
    out="data/curated",
    contract="curated_preferences",
)
