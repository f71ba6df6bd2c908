"""The retraining loop as a recipe: from raw feedback to a registered, audited model."""

from __future__ import annotations

import queue
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from prefect import flow
from prefect.futures import PrefectFuture
from prefect.runtime import deployment, flow_run
from prefect.states import Completed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from plumbline.flows.deployment.deployments import REJECTED
from plumbline.flows.graph.params_stage import settle_resolved
from plumbline.flows.graph.preflight import settle_params
from plumbline.flows.graph.run_stage import run_stage
from plumbline.flows.graph.stages import STAGES
from plumbline.flows.graph.workspaces import exclusive_run
from plumbline.tasks.data.ingest_feedback import fixed_raw, ingest_feedback
from plumbline.tasks.operations.settle_champion import Settled, settle_first_champion
from plumbline.tasks.params.whole import Params
from plumbline.tasks.pipeline.isolation import warm_up
from plumbline.tasks.pipeline.session import Session
from plumbline.tasks.pipeline.stage import Stage, StageRecord, fill
from plumbline.tasks.registry.register_model import refuse_early, register_model
from plumbline.tasks.registry.store.runs import open_run

_LISTEN_EVERY_S = 0.2
_THREADS = cast(TaskRunner[PrefectFuture[Any]], ThreadPoolTaskRunner(max_workers=4))


@flow(name="retrain", task_runner=_THREADS, validate_parameters=False)
def retrain(
    root: str = ".",
    overlays: Sequence[str] = (),
    settings: Sequence[str] = (),
    once: Sequence[str] = (),
    trigger: Mapping[str, Any] | None = None,
    wait_s: float = 0.0,
    ingest: bool = True,
) -> Settled:
    """Bring every stage up to date and register the model; independent stages run side by side.

    `root` is a workspace made by `plumbline init`; `overlays`, `settings` and `once` are as on the
    command line; `trigger` is what started the run, for the manifest; `wait_s` is how long to wait
    for a workspace in which another run is under way; `ingest` is false if the caller has just taken in the feedback
    that params name. Whoever calls it gets what was registered; at the server the state of a run whose model the gate
    turned down is called `REJECTED`. Raises the first stage's `PlumblineError`.
    """
    workspace = Path(root).resolve()
    with exclusive_run(workspace, wait_s):
        registered = _retrain(workspace, (overlays, settings, once), trigger or _deployed(), ingest)
    if registered.passed:
        return registered
    told = f"{registered.model_uri} (rejected by the gate)"
    return cast(Settled, Completed(name=REJECTED, message=told, data=registered))  # callers get the data


def _deployed() -> dict[str, Any] | None:
    """The deployment that a schedule or a person at the server started; None on the command line."""
    return {"kind": "deployment", "deployment": str(deployment.name)} if deployment.name else None


def _retrain(
    workspace: Path,
    given: tuple[Sequence[str], Sequence[str], Sequence[str]],
    trigger: Mapping[str, Any] | None,
    ingest: bool,
) -> Settled:
    params, _ = settle_params(workspace, *given)
    settle_resolved(workspace, params, passing=bool(given[-1]))
    refuse_early(workspace, params.registry, params.operations)
    warm_up()
    for source, path, columns in params.feedback.to_ingest() if ingest else ():
        ingest_feedback(workspace, source, [path], params.feedback.limits(), columns=columns)
    with fixed_raw(workspace), open_run(workspace, params.registry, flow_run_id=str(flow_run.id)) as run:
        records = bring_up_to_date(STAGES.values(), Session(workspace, params, run), params)
        registered = register_model(
            workspace, params.registry, records, run, operations=params.operations, trigger=trigger
        )
    return settle_first_champion(workspace, params, registered)


def bring_up_to_date(stages: Iterable[Stage], session: Session, params: Params) -> list[StageRecord]:
    """Run stages, given in pipeline order, each as soon as what it reads is there. Raises the first failure."""
    futures: dict[str, PrefectFuture[StageRecord]] = {}
    for stage in stages:
        after = _producers(stage, params, futures)
        futures[stage.name] = run_stage.submit(stage, session, return_state=False, wait_for=after)
    with session.cancelling():
        records = {record.name: record for record in map(_result, as_they_end(list(futures.values())))}
    return [records[name] for name in futures]


def _producers(
    stage: Stage, params: Params, futures: Mapping[str, PrefectFuture[StageRecord]]
) -> list[PrefectFuture[StageRecord]]:
    """The stages whose outputs this one reads under the present params."""
    reads = {fill(path, params) for path in stage.deps.values()}
    return [future for name, future in futures.items() if STAGES[name].out in reads]


def as_they_end(futures: Sequence[PrefectFuture[Any]]) -> Iterator[PrefectFuture[Any]]:
    """As Prefect's `as_completed`, whose wait ends by a signal, and not by an exception that Prefect raises in here.

    So it ends a run that lost its place on the server, or ran out of time. Else it would go on until a stage has ended,
    hours later, and others would have begun meanwhile.
    """
    ended: queue.SimpleQueue[PrefectFuture[Any]] = queue.SimpleQueue()
    for future in futures:
        future.add_done_callback(ended.put)
    left = len(futures)
    while left:
        with suppress(queue.Empty):
            yield ended.get(timeout=_LISTEN_EVERY_S)
            left -= 1


def _result(future: PrefectFuture[StageRecord]) -> StageRecord:
    return future.result()
