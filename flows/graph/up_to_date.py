"""Find out that a run has nothing to do, without a server, MLflow's client, torch or another process."""

from __future__ import annotations

import time
from pathlib import Path

from plumbline.data_contracts.artifact import read_artifact
from plumbline.flows.graph.params_stage import settle_resolved
from plumbline.flows.graph.stages import STAGES
from plumbline.tasks.data.ingest_feedback import fixed_raw, ingest_feedback
from plumbline.tasks.operations.settle_champion import Settled, settled_before
from plumbline.tasks.params.whole import Params
from plumbline.tasks.pipeline.stage import StageRecord
from plumbline.tasks.registry.register_model import registered_before, settle_ledger
from plumbline.tasks.storage.versioning.workspace import Versions


def up_to_date(root: Path, params: Params, *, passing: bool = False) -> Settled | None:
    """The version that stands for what is there; None if a run has a stage to run or anything to register.

    It does what such a run does: takes feedback in that params name, brings in what arrived, completes the ledger and
    pushes. It refuses what such a run refuses. Call it with the workspace held (`exclusive_run`). `passing`: the params
    hold for this run alone.
    """
    settle_resolved(root, params, passing=passing)
    settle_ledger(root, params.registry, params.operations)
    for source, path, columns in params.feedback.to_ingest():
        ingest_feedback(root, source, [path], params.feedback.limits(), columns=columns)
    with fixed_raw(root):
        records = _reusable(root)
        known = registered_before(root, params.registry, records, params.operations) if records else None
    return settled_before(root, params, known) if known is not None else None


def _reusable(root: Path) -> list[StageRecord]:
    """Every stage as reused; nothing where DVC would run, check out or record one."""
    started = time.monotonic()
    found = Versions(root).standings(list(STAGES))
    if any(standing.action != "reuse" for standing in found.values()):
        return []
    seconds = (time.monotonic() - started) / len(STAGES)
    return [
        StageRecord(stage.name, seconds, True, read_artifact(root / stage.out, contract=stage.contract))
        for stage in STAGES.values()
    ]
