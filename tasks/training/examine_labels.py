"""Verb: examine the labels of a workspace or of files, and write a report and the pairs worth a second look.

`reports/clinic` holds `report.json`, `second_look.jsonl` (for people or a judge to label, without a hint of the
label) and `reasons.jsonl` (the same pairs for the owner of the data). It is no stage: nothing depends on it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import orjson

from plumbline.data_contracts.artifact import write_json, writing
from plumbline.data_contracts.errors import UsageError
from plumbline.data_contracts.extras import needs_extra
from plumbline.data_contracts.progress import Progress, silent
from plumbline.tasks.data.clinic.examine import Score, examine
from plumbline.tasks.data.curation.curate import curate
from plumbline.tasks.data.feedback.batches import BatchChoices, store_batch
from plumbline.tasks.data.feedback.places import expand
from plumbline.tasks.data.feedback.validate import NamedBatch, raw_batches
from plumbline.tasks.data.feedback.votes import read_votes
from plumbline.tasks.data.ingest_feedback import arrived_batches, withdrawals_of
from plumbline.tasks.data.validate_feedback import RAW
from plumbline.tasks.params.whole import Params

REPORT, ROWS, REASONS = "report.json", "second_look.jsonl", "reasons.jsonl"
PLACE = "reports/clinic"
"""The folder of the report in a workspace."""

_WORLD, _REWARD = "data/world", "models/reward"


def examine_labels(
    root: Path,
    params: Params,
    source: str | None,
    paths: Sequence[str],
    *,
    out: Path | None = None,
    most: int = 200,
    columns: Mapping[str, str] = MappingProxyType({}),
    progress: Progress = silent,
) -> dict[str, Any]:
    """Examine the labels of files, or of all feedback of the workspace if there are none; returns the report.

    `most` is the number of pairs for a second look. "folder" of the report says where its files are. The reward model
    of the workspace, if it has one, helps to choose the pairs. Raises `UsageError` for unreadable files, without
    feedback, and without the libraries of the extra `clinic`.
    """
    with needs_extra("clinic", "plumbline clinic"):
        import crowdkit.aggregation  # noqa: F401
        import krippendorff  # noqa: F401
    with tempfile.TemporaryDirectory(prefix="plumbline-clinic-") as scratch:
        batches = _stored(params, source, paths, columns, Path(scratch)) if paths else _of_workspace(root)
        read = read_votes(batches, params.feedback, withdrawals_of(root))
    curation = params.curation.model_copy(
        update={"listed": len(read.pairs), "split": params.curation.split.model_copy(update={"on_empty": "warn"})}
    )
    curated = curate(read.pairs, curation, params.seed)
    score = _score(root, params)
    found = examine(read, curated, curation.matching, params.seed, most=most, score=score, progress=progress)
    folder = (out or root / PLACE).absolute()
    with writing(folder, contract="label_clinic", version=1) as draft:
        (draft.path / ".gitignore").write_text("*\n")  # a workspace with a report is not dirty for that
        write_json(draft.path / REPORT, found.report)
        for name, rows in ((ROWS, found.rows), (REASONS, found.reasons)):
            (draft.path / name).write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return {**found.report, "folder": str(folder)}


def _stored(
    params: Params, source: str | None, paths: Sequence[str], columns: Mapping[str, str], scratch: Path
) -> list[NamedBatch]:
    """The files as batches in a scratch folder, each once."""
    intake = BatchChoices(columns, limits=params.feedback.limits(), fallback=params.feedback.source)
    stored = [store_batch(path, source, scratch / "raw", intake=intake) for path in expand(paths)]
    once = {batch.path: batch for batch in stored}.values()
    return [(batch.source, batch.given, batch.path) for batch in once]


def _of_workspace(root: Path) -> list[NamedBatch]:
    """Every batch that a run would read, those that wait for a run to end included."""
    world = root / _WORLD / "feedback"
    found = [*raw_batches(root / RAW, within=root), *arrived_batches(root), *raw_batches(world, within=root)]
    if not found:
        raise UsageError(
            f"{root}: expected feedback to examine, found none. Name files (`plumbline clinic FILE`), run `plumbline "
            f"ingest FILE`, or, with the sample world, `plumbline retrain`."
        )
    return found


def _score(root: Path, params: Params) -> Score | None:
    """The rewards of the workspace's reward model; None if it has none."""
    folder = root / _REWARD
    if not folder.is_dir():
        return None
    from plumbline.tasks.training.rewards.scoring import RewardModel

    model = RewardModel.load(folder, trust_remote_code=params.reference.trust_remote_code)
    scored: Callable[..., list[float | None]] = model.score_fitting
    return scored
