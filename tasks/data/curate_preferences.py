"""Stage `curate`: clean, de-duplicate, resolve contradictions and split the accepted pairs."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from plumbline.data_contracts.artifact import read_artifact, write_json
from plumbline.data_contracts.errors import ContractViolation
from plumbline.data_contracts.records import (
    Merged,
    PreferencePair,
    Quarantined,
    UnpairedResponse,
    dump_jsonl,
    load_jsonl,
)
from plumbline.tasks.data.curation.curate import curate_rows
from plumbline.tasks.data.curation.curated import Curated, CuratedRows
from plumbline.tasks.data.curation.pair_source import PairLines
from plumbline.tasks.data.curation.unpaired import CuratedUnpaired, curate_unpaired
from plumbline.tasks.data.feedback.shares import too_many
from plumbline.tasks.params.curation import SPLITS, CurationParams
from plumbline.tasks.params.feedback import FeedbackParams
from plumbline.tasks.pipeline.stage import Facts, Stage, StageContext

UNPAIRED = "unpaired.jsonl"
"""Single responses, in the validated and the curated set; absent where no feedback has any."""

_REPORT_FILES = ("report.json", "quarantine.jsonl", "merged.jsonl")


def curate_preferences(
    context: StageContext,
    *,
    seed: int,
    curation: CurationParams,
    feedback_quarantine_threshold: float = FeedbackParams().quarantine_threshold,
    feedback_quarantine_thresholds: Mapping[str, float] = MappingProxyType({}),
) -> Facts:
    """Write the three splits and account for every pair that is in none of them.

    Raises `ContractViolation` when validation and curation set too many rows aside. The report and the rows are then
    copied into the work folder, and the message names them.
    """
    validated = read_artifact(context.dep("validated"))
    with PairLines(validated.path / "accepted.jsonl") as source:
        curated = curate_rows(source, curation, seed, context.progress)
        for name in SPLITS:
            with (context.folder / f"{name}.jsonl").open("wb") as file:
                file.writelines(curated.lines(name))
        single = _curate_unpaired(validated.path, curated, curation, seed)
    if single is not None:
        dump_jsonl(context.folder / UNPAIRED, single.accepted)
    merged, quarantined = set_aside(curated, single)
    dump_jsonl(context.folder / "merged.jsonl", merged)
    dump_jsonl(context.folder / "quarantine.jsonl", quarantined)
    write_json(context.folder / "report.json", curated.report | ({"unpaired": single.report} if single else {}))
    counts = account(validated.facts, curated, single)
    limits = FeedbackParams(
        quarantine_threshold=feedback_quarantine_threshold, quarantine_thresholds=dict(feedback_quarantine_thresholds)
    )
    if stops := objections(validated.facts, curated, single, limits):
        for name in _REPORT_FILES:
            shutil.copyfile(context.folder / name, context.work / name)
        kept = ", ".join(str(context.work / name) for name in _REPORT_FILES)
        raise ContractViolation("\n".join([*stops, f"What curation set aside and merged, and its report: {kept}."]))
    return counts


def _curate_unpaired(folder: Path, curated: CuratedRows, params: CurationParams, seed: int) -> CuratedUnpaired | None:
    """The single responses beside the pairs, if there are files of them."""
    if not (folder / UNPAIRED).is_file():
        return None
    responses = list(load_jsonl(folder / UNPAIRED, UnpairedResponse))
    pairs = list(load_jsonl(folder / "accepted.jsonl", PreferencePair))
    return curate_unpaired(responses, pairs, curated.whole(), params, seed)


def objections(
    validated: Mapping[str, Any], curated: Curated | CuratedRows, single: CuratedUnpaired | None, limits: FeedbackParams
) -> list[str]:
    """Objections of params to the rows that were set aside, of pairs and of single responses each."""
    apart: Mapping[str, Any] = validated.get("unpaired") or {"read": 0, "reasons": {}}
    pairs = Counter(validated["reasons"]) - Counter(apart["reasons"])
    pairs += Counter(row.reason for row in curated.quarantined)
    stops = too_many(pairs, validated["read"] - apart["read"], limits, quarantined=curated.quarantined)
    if single is not None:
        reasons = Counter(apart["reasons"]) + Counter(row.reason for row in single.quarantined)
        stops += too_many(reasons, apart["read"], limits, "rows of single responses", single.quarantined)
    return stops


def set_aside(curated: Curated | CuratedRows, single: CuratedUnpaired | None) -> tuple[list[Merged], list[Quarantined]]:
    """The rows that curation merged and those that it set aside, of pairs and of single responses."""
    if single is None:
        return curated.merged, curated.quarantined
    return [*curated.merged, *single.merged], [*curated.quarantined, *single.quarantined]


def account(
    validated: Mapping[str, Any], curated: Curated | CuratedRows, single: CuratedUnpaired | None = None
) -> Facts:
    """Close the books over validation and curation: `read = accepted + merged + quarantined`.

    `reasons` counts the quarantined by reason, `merged_reasons` the merged. With single responses `unpaired` counts
    those to train on, and they are in the other figures.

    Raises `ContractViolation` when they do not close, which would mean that a record was lost.
    """
    splits = curated.counts()
    folded, refused = set_aside(curated, single)
    reasons = Counter(validated["reasons"]) + Counter(row.reason for row in refused)
    merged_reasons = Counter(row.reason for row in folded)
    unpaired = {"unpaired": len(single.accepted)} if single else {}
    read, accepted, merged = validated["read"], sum((splits | unpaired).values()), merged_reasons.total()
    quarantined = validated["quarantined"] + len(refused)
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
        **unpaired,
    }


STAGE = Stage(
    name="curate",
    title="Curate preferences",
    body=curate_preferences,
    deps={"validated": "data/validated"},
    params=("seed", "curation", "feedback.quarantine_threshold", "feedback.quarantine_thresholds"),
    out="data/curated",
    contract="curated_preferences",
)
