"""Verb: answers of the tuned policy against π_ref's, labelled by a judge, as a new batch of feedback.

The players run in a process of their own, as a stage does, but not as one: the batch goes into the append-only raw
store, from which the next `plumbline retrain` reads it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from plumbline.data_contracts.artifact import MANIFEST, read_artifact, verify_artifact, write_bytes
from plumbline.data_contracts.errors import ArtifactError, UsageError
from plumbline.data_contracts.records import CuratedPair, load_jsonl
from plumbline.tasks.data.feedback.batches import Batch
from plumbline.tasks.data.ingest_feedback import ingest_feedback
from plumbline.tasks.params.comparison import SelfPlayParams
from plumbline.tasks.params.judge import JudgeParams
from plumbline.tasks.params.section import Section
from plumbline.tasks.pipeline.isolation import run_isolated
from plumbline.tasks.pipeline.stage import Facts, Stage, StageContext
from plumbline.tasks.pipeline.watch import watch

SOURCE = "judged_pairs"
_ROWS = "pairs.jsonl"


@dataclass(frozen=True, slots=True)
class SelfPlayed:
    """The result of self-play: the batch, the outcomes of the prompts, and the judge's agreement with people."""

    batch: Batch
    counts: dict[str, int]
    reliability: dict[str, Any]


def self_play(root: Path, params: Section) -> SelfPlayed:
    """Play, judge and ingest. The same policies, judge, prompts and seed give the same batch, which is kept once.

    Raises `UsageError` if there is no policy yet, `ArtifactError` where a model was changed by hand, and
    `JudgeError` for a judge that agrees with people less than `judge.min_kappa`.
    """
    stage = _stage_of(root)
    for path in stage.deps.values():
        _require(root, path)
    watch().started(stage)
    log = root / ".plumbline" / "logs" / f"{stage.name}.log"
    artifact = run_isolated(stage, root, params, log, watch().progress(stage))
    (batch,) = ingest_feedback(root, SOURCE, [str(artifact.path / _ROWS)])
    return SelfPlayed(batch, artifact.facts["counts"], artifact.facts["reliability"])


def play_and_judge(
    context: StageContext,
    *,
    seed: int,
    threads: int,
    self_play: SelfPlayParams,
    judge: JudgeParams,
    reference_trust_remote_code: bool,
) -> Facts:
    """Measure the judge on held-out pairs, let the policies answer, write the judged pairs."""
    from plumbline.tasks.evaluation.comparison.self_play import Side, play
    from plumbline.tasks.models.completion_lengths import settle_lengths
    from plumbline.tasks.models.loading import load_tokenizer, seed_everything
    from plumbline.tasks.models.renderable import sift_splits
    from plumbline.tasks.training.rewards.judges.build import JudgeMeans, build_judge
    from plumbline.tasks.training.rewards.judges.reliability import calibrate, require_reliable
    from plumbline.tasks.training.rewards.scoring import RewardModel

    seed_everything(seed, threads)
    trusting, curated = reference_trust_remote_code, context.dep("curated")
    model = RewardModel.load(context.dep("reward"), trust_remote_code=trusting)
    asked = build_judge(judge, JudgeMeans(model, context.work / "answers", trusting))
    policy, reference = context.dep("policy"), context.dep("reference")
    self_play = settle_lengths(self_play, context.deps.get("lengths"), reference, trust_remote_code=trusting)
    given = {name: list(load_jsonl(curated / f"{name}.jsonl", CuratedPair)) for name in ("train", "validation")}
    # how many may be refused was decided before training
    kept, sifted = sift_splits(load_tokenizer(policy, trust_remote_code=trusting), given, 1.0)
    reliability = calibrate(asked, kept["validation"], judge.calibration_pairs, seed)
    require_reliable(reliability, judge)
    played = play(
        Side(policy, read_artifact(policy).digest),
        Side(reference, read_artifact(reference).digest),
        kept["train"],
        asked,
        self_play,
        seed,
        context.progress,
        trust_remote_code=trusting,
    )
    lines = [orjson.dumps(row, option=orjson.OPT_SORT_KEYS) + b"\n" for row in played.rows]
    write_bytes(context.folder / _ROWS, b"".join(lines))
    longest = self_play.max_new_tokens
    return {"counts": played.counts, "reliability": reliability, "max_new_tokens": longest, **sifted}


def _stage_of(root: Path) -> Stage:
    """The stage; without the measured lengths in a workspace whose last run was before there was such a stage."""
    measured = STAGE.deps["lengths"]
    there = (root / measured / MANIFEST).is_file()
    return STAGE if there else replace(STAGE, deps={n: path for n, path in STAGE.deps.items() if path != measured})


def _require(root: Path, path: str) -> None:
    if not (root / path / MANIFEST).is_file():
        raise UsageError(f"{root / path}: expected what `plumbline retrain` makes, found nothing. Run it first.")
    problems = verify_artifact(root / path)
    if problems:
        raise ArtifactError(
            f"{root / path}: expected it as it was made, found {problems[0].path} changed. `dvc checkout {path}` "
            f"brings it back."
        )


STAGE = Stage(
    name="self-play",
    title="Self-play",
    body=play_and_judge,
    deps={
        "policy": "models/policy",
        "reference": "models/reference",
        "lengths": "reports/lengths",
        "reward": "models/reward",
        "curated": "data/curated",
    },
    params=("seed", "threads", "self_play", "judge", "reference.trust_remote_code"),
    out=".plumbline/self-play",
    contract="judged_pairs",
    trains=True,
)
