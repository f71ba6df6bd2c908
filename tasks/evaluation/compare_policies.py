"""Verb: fine-tune and evaluate the variants of a comparison, each by the very bodies of those two stages.

Layout, none of it an input of any stage, and outside git by a `.gitignore` of its own:

    comparisons/<inputs>/<name>-seed<seed>-<settings>/policy              what stage `finetune` would write
    comparisons/<inputs>/<name>-seed<seed>-<settings>/cost.json           what that took; a clock is no content
    comparisons/<inputs>/<name>-seed<seed>-<settings>/evaluation-<params>  what stage `evaluate` would write

`<inputs>` names the digests of what all variants read, `<settings>` and `<params>` what the two stages declare: a
folder that is there and whole is the answer to the same question. Both stages write through a temporary name,
and training resumes from its last checkpoint, so a killed comparison goes on where it was.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from plumbline.data_contracts.artifact import (
    Artifact,
    read_artifact,
    verify_artifact,
    warnings_of,
    write_bytes,
    writing,
)
from plumbline.data_contracts.errors import ArtifactError, PlumblineError, StageError
from plumbline.data_contracts.records import CuratedPair, load_jsonl
from plumbline.tasks.evaluation import decide_gate, evaluate_policy
from plumbline.tasks.evaluation.comparison.budget import readings_of
from plumbline.tasks.evaluation.comparison.cost import Cost, Metered, read_cost
from plumbline.tasks.evaluation.comparison.recommend import VariantRefusal
from plumbline.tasks.evaluation.comparison.report import Comparison, Shared, compare, write_report
from plumbline.tasks.evaluation.comparison.table import Trial, read_outcomes
from plumbline.tasks.evaluation.comparison.variants import Variant
from plumbline.tasks.evaluation.measures.gate import decide
from plumbline.tasks.params.comparison import CompareParams
from plumbline.tasks.params.evaluation import GateParams
from plumbline.tasks.params.section import Section
from plumbline.tasks.pipeline.isolation import run_isolated
from plumbline.tasks.pipeline.session import Session
from plumbline.tasks.pipeline.stage import Stage, StageRecord, declared, digest_of, fill
from plumbline.tasks.pipeline.watch import watch
from plumbline.tasks.training import finetune_policy

HOME = "comparisons"
REPORT = "reports/comparison"
CONTRACT = "comparison"
_SHORT = 12  # hex digits of a digest in a folder's name: a workspace holds few
_KEEP_OUT = b"# Recomputed by `plumbline compare`; not for git.\n*\n"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One variant under one seed, with the params that it runs under."""

    variant: Variant
    seed: int
    methods: tuple[str, ...]
    params: Section

    @property
    def label(self) -> str:
        """Name and seed: how people, runs and folders call it."""
        return f"{self.variant.name}-seed{self.seed}"


@dataclass(frozen=True, slots=True)
class AttemptOutcome:
    """The outcome of an attempt: a trial and its folders, or why there is none."""

    attempt: Attempt
    trial: Trial | None
    folder: Path
    reused: bool = False
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class Compared:
    """A comparison with its report's folder."""

    comparison: Comparison
    report: Path
    outcomes: Sequence[AttemptOutcome]
    stages: Sequence[StageRecord]

    @property
    def facts(self) -> Mapping[str, Any]:
        """The figures of each variant, the recommendation and its reasons."""
        return self.comparison.facts

    @property
    def failed(self) -> list[str]:
        """Labels of the attempts that left no policy."""
        return [outcome.attempt.label for outcome in self.outcomes if outcome.failure is not None]


def stages_of(attempt: Attempt, folder: str = HOME) -> tuple[Stage, Stage]:
    """The two stages for an attempt, writing under `folder` in the workspace; a display needs their names alone."""
    name, policy = f"compare/{attempt.label}", f"{folder}/policy"
    training, evaluation = finetune_policy.STAGE, evaluate_policy.STAGE
    return (
        replace(training, name=f"{name}/finetune", title=f"{attempt.label}: train", out=policy),
        replace(
            evaluation,
            name=f"{name}/evaluate",
            title=f"{attempt.label}: evaluate",
            deps={**evaluation.deps, "policy": policy},
            out=f"{folder}/evaluation",
        ),
    )


def run_attempt(attempt: Attempt, session: Session, slots: threading.Semaphore) -> AttemptOutcome:
    """Fine-tune and evaluate one attempt, or find both done; wait for a slot first.

    An attempt that fails ends with its reason, and the others go on: a collapse is a finding too.
    """
    with slots:
        folder = _folder(attempt, session)
        try:
            return _run(attempt, session, folder)
        except PlumblineError as error:
            if session.cancelled.is_set():
                raise
            return AttemptOutcome(attempt, None, folder, failure=str(error))


def inputs_of(session: Session) -> dict[str, str]:
    """Digests of what all attempts read, by path in the workspace."""
    stages = (finetune_policy.STAGE, evaluate_policy.STAGE)
    paths = {fill(path, session.params) for stage in stages for path in stage.deps.values()} - {
        finetune_policy.STAGE.out
    }
    return {path: digest_of(session.root / path) for path in sorted(paths)}


def report_comparison(
    session: Session, params: CompareParams, outcomes: Sequence[AttemptOutcome], stages: Sequence[StageRecord]
) -> Compared:
    """Sum up, recommend, write `reports/comparison`, and log a child run a trial.

    Raises `StageError` with the first failure's reason when no attempt left a policy.
    """
    trials = [outcome.trial for outcome in outcomes if outcome.trial is not None]
    failures = {each.attempt.label: each.failure for each in outcomes if each.failure is not None}
    if not trials:
        label, why = next(iter(failures.items()))
        raise StageError(f"every variant failed, {label} because: {why}")
    inputs = inputs_of(session)
    evaluation = declared(evaluate_policy.STAGE, session.params)["evaluation"]
    shared = Shared(
        train=list(load_jsonl(session.root / "data/curated/train.jsonl", CuratedPair)),
        reward_audit=trials[0].metrics["reward_audit"],
        inputs=inputs,
        seed=declared(evaluate_policy.STAGE, session.params)["seed"],
        confidence=evaluation.confidence,
        resamples=evaluation.resamples,
        reward_seconds=session.run.seconds_of("reward", inputs[finetune_policy.STAGE.deps["reward"]]),
    )
    limits: GateParams = declared(decide_gate.STAGE, session.params)["gate"]
    comparison = compare(trials, failures, shared, params, lambda metrics: refused_by(metrics, limits))
    parents = {
        f"{each.attempt.label}/policy": read_artifact(each.folder / "policy").digest for each in outcomes if each.trial
    }
    with writing(session.root / REPORT, contract=CONTRACT, version=1, parents={**inputs, **parents}) as draft:
        write_report(comparison, trials, params, draft.path)
        write_bytes(draft.path / ".gitignore", _KEEP_OUT)
        draft.facts = {"recommended": comparison.recommendation.variant, "judge": comparison.judge}
    _log(session, comparison, outcomes)
    return Compared(comparison, session.root / REPORT, outcomes, stages)


def refused_by(metrics: Mapping[str, Any], gate: GateParams) -> list[VariantRefusal]:
    """The checks of a registration's gate that say no."""
    said = [reason for reason in decide(metrics, gate).reasons if not reason.passed]
    return [VariantRefusal(reason.name, reason.value, reason.threshold, reason.text) for reason in said]


def _run(attempt: Attempt, session: Session, folder: Path) -> AttemptOutcome:
    training, evaluation = stages_of(attempt, folder.relative_to(session.root).as_posix())
    account, policy = folder / "cost.json", session.root / training.out
    if policy.exists() and (_whole(policy) is None or read_cost(account) is None):
        # Changed by hand, or without its account, at no cost: neither can be compared. It is made from the start.
        shutil.rmtree(policy)
        account.unlink(missing_ok=True)
    trained = _bring(replace(training, body=Metered(training.body, account)), attempt.params, session)
    read = {"policy": trained.artifact.digest, "params": _plain(declared(evaluation, session.params))}
    key = _key({**read, "as": [evaluation.contract, evaluation.version]})
    measured = _bring(replace(evaluation, out=f"{evaluation.out}-{key}"), session.params, session)
    cost = read_cost(account)
    assert cost is not None, "the stage ended without its account"
    trial = _trial(attempt, trained.artifact, measured.artifact, cost)
    return AttemptOutcome(attempt, trial, folder, reused=trained.reused and measured.reused)


def _trial(attempt: Attempt, policy: Artifact, evaluation: Artifact, cost: Cost) -> Trial:
    return Trial(
        variant=attempt.variant.name,
        methods=attempt.methods,
        settings=attempt.variant.settings,
        seed=attempt.seed,
        metrics=evaluation.facts["metrics"],
        outcomes=read_outcomes(evaluation.path),
        cost=cost,
        readings=readings_of(policy.facts, cost.cpu_seconds),
        warnings=tuple(entry["text"] for entry in warnings_of({"finetune": policy, "evaluate": evaluation})),
    )


def _bring(stage: Stage, params: Section, session: Session) -> StageRecord:
    """The stage's artifact: as it is where it is whole, else made now."""
    started = time.monotonic()
    watch().started(stage)
    artifact = _whole(session.root / stage.out)
    reused = artifact is not None
    if artifact is None:
        log = session.root / ".plumbline" / "logs" / f"{stage.name}.log"
        artifact = run_isolated(stage, session.root, params, log, watch().progress(stage), session.cancelled)
    record = StageRecord(stage.name, time.monotonic() - started, reused, artifact)
    watch().finished(stage, record)
    return record


def _whole(path: Path) -> Artifact | None:
    """The artifact at `path` if every file is as its manifest says; None if there is none or it was changed."""
    try:
        return None if verify_artifact(path) else read_artifact(path)
    except ArtifactError:
        return None


def _folder(attempt: Attempt, session: Session) -> Path:
    home = session.root / HOME
    home.mkdir(exist_ok=True)
    if not (home / ".gitignore").exists():
        write_bytes(home / ".gitignore", _KEEP_OUT)
    stage = finetune_policy.STAGE
    settings = {"params": _plain(declared(stage, attempt.params)), "as": [stage.contract, stage.version]}
    folder = home / _key(inputs_of(session)) / f"{attempt.label}-{_key(settings)}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value.model_dump(mode="json") if isinstance(value, Section) else value for key, value in values.items()
    }


def _key(value: Any) -> str:
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()[:_SHORT]


def _log(session: Session, comparison: Comparison, outcomes: Sequence[AttemptOutcome]) -> None:
    for outcome in outcomes:
        trial = outcome.trial
        if trial is not None:
            settings = {**trial.settings, "variant": trial.variant, "seed": trial.seed}
            spent = {name: getattr(trial.cost, name) for name in trial.cost.__slots__}
            values = {**trial.metrics, "cost": {name: value for name, value in spent.items() if value is not None}}
            session.run.log_variant(outcome.attempt.label, outcome.folder / "policy", settings, values)
    session.run.log_files(session.root / REPORT, "comparison")
    recommended = comparison.recommendation.variant or "keep the reference policy"
    session.run.log_outcome({}, {}, {"plumbline.recommended": recommended})
