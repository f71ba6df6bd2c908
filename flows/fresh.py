"""Runs that nobody starts by hand: because of an event, or because the poll found what an event should have reported.

Both ask admission, which lets one run in for a key however often it is asked, and both end as Completed
with the reason where no run is due. A run that is killed leaves its claim behind; the next to ask takes it over.

While another run holds the workspace, one that an event started waits for it, before it claims anything; the poll
does not, because the next poll looks again. While it waits, other events queue up at its deployment.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Completed

from plumbline.data_contracts.errors import OperationsError, WorkspaceBusy
from plumbline.flows.deployment.deployments import REJECTED
from plumbline.flows.deployment.servers import server_url
from plumbline.flows.graph import environment
from plumbline.flows.graph.workspaces import exclusive_run
from plumbline.flows.retrain import retrain
from plumbline.tasks.operations.admit_run import admit_run, finish_run
from plumbline.tasks.operations.announce import drain_outbox, open_outbox
from plumbline.tasks.operations.freshness.admission import Admission, Outcome
from plumbline.tasks.operations.freshness.outbox import find
from plumbline.tasks.operations.settle_champion import Settled
from plumbline.tasks.params.layers import load_params
from plumbline.tasks.params.whole import Params

NOT_STARTED = "NotStarted"
"""Name of the Completed state of a run that found nothing to do."""


@flow(name="retrain-on-fresh", validate_parameters=False)
def retrain_on_fresh(root: str = ".", key: str | None = None, event_id: str | None = None) -> State[Any]:
    """Retrain if the batch of an event, or anything else that waits, is due.

    `key` and `event_id` are the event's. Raises the run's `PlumblineError`.
    """
    workspace, params = _open(root)
    asked = {"kind": "event", "key": key, "event_id": event_id}
    return _run_if_due(workspace, params, asked, wait_s=params.schedule.busy_wait_h * 3600)


@flow(name="poll-freshness", validate_parameters=False)
def poll_freshness(root: str = ".") -> State[Any]:
    """Send the events that are left over, then retrain if anything is due: a lost event costs a poll, not a run.

    Raises the run's `PlumblineError`.
    """
    workspace, params = _open(root)
    try:
        sent = drain_outbox(workspace, params, server_url())
        get_run_logger().info("sent %d events", len(sent))
    except OperationsError as error:
        get_run_logger().warning("%s", error)  # the rows stay for the next poll; their batches are looked at now
    return _run_if_due(workspace, params, {"kind": "poll", "key": None, "event_id": None}, wait_s=0.0)


def _open(root: str) -> tuple[Path, Params]:
    workspace = Path(root).resolve()
    params, _ = load_params(workspace)
    environment.prepare(params.threads, workspace)
    return workspace, params


def _run_if_due(root: Path, params: Params, asked: Mapping[str, Any], wait_s: float) -> State[Any]:
    until = time.monotonic() + wait_s
    while True:
        try:
            with exclusive_run(root, max(0.0, until - time.monotonic())):
                pass  # free: asking now sees what the run before has trained on
            admission = admit_run(root, params, asked["key"])
            if not admission.admitted:
                return _not_started(admission.reason)
            return _ended(_run(root, params, admission, asked), admission)
        except WorkspaceBusy as busy:  # or taken by another between the two, with the claim given back
            if time.monotonic() >= until:
                return _not_started(f"{busy} Nothing is lost: the next poll looks again.")


def _run(root: Path, params: Params, admission: Admission, asked: Mapping[str, Any]) -> Settled:
    """Retrain under a claim, and close the claim whatever happens."""
    get_run_logger().info("admitted: %s", admission.reason)
    claim = str(admission.run_key)
    try:
        registered: Settled = retrain(root=str(root), trigger=_trigger(root, params, admission, asked))
    except WorkspaceBusy as busy:
        finish_run(root, params, claim, outcome="released", model_uri=None, detail=str(busy))
        raise
    except BaseException as error:  # a cancel too: its keys are due again after the pause for retries
        finish_run(root, params, claim, outcome="failed", model_uri=None, detail=f"{type(error).__name__}: {error}")
        raise
    outcome: Outcome = "completed" if registered.passed else "rejected"
    finish_run(root, params, claim, outcome=outcome, model_uri=registered.model_uri, detail=admission.reason)
    return registered


def _trigger(root: Path, params: Params, admission: Admission, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The trigger of the run, for the manifest. A key names its event, also if that event was lost."""
    key = asked["key"] if asked["key"] in admission.keys else next(iter(admission.keys), None)
    entry = find(open_outbox(root, params), key) if key is not None else None
    return {
        "kind": asked["kind"],
        "key": key,
        "event_id": entry.event_id if entry is not None else asked["event_id"],
        "keys": list(admission.keys),
        "reason": admission.reason,
        "run_key": admission.run_key,
    }


def _ended(registered: Settled, admission: Admission) -> State[Any]:
    verdict = "passed" if registered.passed else "rejected by the gate"
    told = f"{registered.model_uri} ({verdict}), because: {admission.reason}"
    return Completed(message=told) if registered.passed else Completed(name=REJECTED, message=told)


def _not_started(reason: str) -> State[Any]:
    get_run_logger().info("no run: %s", reason)
    return Completed(name=NOT_STARTED, message=reason)
