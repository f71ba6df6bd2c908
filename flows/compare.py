"""Variants of fine-tuning side by side, on the same data and prompts: a table, and which one to take."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from plumbline.flows.graph.params_stage import settle_resolved
from plumbline.flows.graph.preflight import settle_params
from plumbline.flows.graph.variants import shared_stages, validated_variants
from plumbline.flows.graph.workspaces import exclusive_run
from plumbline.flows.retrain import as_they_end, bring_up_to_date
from plumbline.tasks.data.ingest_feedback import fixed_raw
from plumbline.tasks.evaluation.compare_policies import (
    Attempt,
    AttemptOutcome,
    Compared,
    report_comparison,
    run_attempt,
    stages_of,
)
from plumbline.tasks.params.whole import Params
from plumbline.tasks.pipeline.isolation import warm_up
from plumbline.tasks.pipeline.session import Session
from plumbline.tasks.pipeline.stage import Stage
from plumbline.tasks.registry.store.runs import open_run

_MOST = 64  # as CompareParams.parallel; attempts beyond the slots wait in their threads
_THREADS = cast(TaskRunner[PrefectFuture[Any]], ThreadPoolTaskRunner(max_workers=_MOST))

run_variant = task(name="variant", task_run_name="{attempt.label}", cache_policy=NO_CACHE)(run_attempt)


@flow(name="compare", task_runner=_THREADS, validate_parameters=False)
def compare(
    root: str = ".", overlays: Sequence[str] = (), settings: Sequence[str] = (), once: Sequence[str] = ()
) -> Compared:
    """Bring what the variants share up to date, run them, report. `models/policy` and its evaluation stay as they are.

    `root`, `overlays`, `settings` and `once` are as in `retrain`. Raises the first shared stage's `PlumblineError`, and
    `ParamsError` for a variant that is refused before any work.
    """
    workspace = Path(root).resolve()
    with exclusive_run(workspace):
        return _compare(workspace, overlays, settings, once)


def _compare(workspace: Path, overlays: Sequence[str], settings: Sequence[str], once: Sequence[str]) -> Compared:
    params, _ = settle_params(workspace, overlays, settings, once, comparing=True)
    settle_resolved(workspace, params, passing=bool(once))
    attempts = attempts_of(params)
    warm_up()
    opened = open_run(workspace, params.registry, flow_run_id=str(flow_run.id), name="compare")
    with fixed_raw(workspace), opened as run:
        session = Session(workspace, params, run)
        shared = bring_up_to_date(shared_stages(params), session, params)
        slots = threading.Semaphore(params.compare.parallel or _by_cores(params.threads))
        futures = [run_variant.submit(attempt, session, slots, return_state=False) for attempt in attempts]
        with session.cancelling():
            done = {outcome.attempt.label: outcome for outcome in map(_result, as_they_end(futures))}
        outcomes = [done[attempt.label] for attempt in attempts]
        return report_comparison(session, params.compare, outcomes, shared)


def attempts_of(params: Params) -> list[Attempt]:
    """Every variant under every seed, in order. Raises `ParamsError` naming variant and key."""
    return [
        Attempt(variant, seed, tuple(own.finetune.methods), own.model_copy(update={"seed": seed}))
        for variant, own in validated_variants(params)
        for seed in params.compare.seeds or (params.seed,)
    ]


def shown_stages(params: Params) -> list[Stage]:
    """All that a display shows of a comparison, in order."""
    return [*shared_stages(params), *(stage for attempt in attempts_of(params) for stage in stages_of(attempt))]


def _by_cores(threads: int) -> int:
    """Half the cores by the threads of one trainer: the other half reads, samples and serves."""
    return max(1, (os.cpu_count() or 1) // 2 // threads)


def _result(future: PrefectFuture[AttemptOutcome]) -> AttemptOutcome:
    return future.result()
