"""Verb: look at what waits and at the last model, and ask admission whether a run may start."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import Engine

from plumbline.tasks.operations.announce import open_outbox, reconcile
from plumbline.tasks.operations.count_fresh import count_fresh, known_contents
from plumbline.tasks.operations.freshness.admission import (
    Admission,
    FreshRun,
    FreshState,
    Outcome,
    consider,
    finish,
    runs,
)
from plumbline.tasks.operations.freshness.outbox import EntryState, entry_states
from plumbline.tasks.params.whole import Params
from plumbline.tasks.registry.store.client import Store
from plumbline.tasks.registry.versions.latest import LatestModel, latest_model
from plumbline.tasks.storage.database.outbox_tables import ABANDONED, SPENT, WAITING, utc_now


def admit_run(
    root: Path, params: Params, event_key: str | None = None, *, forced: bool = False, now: datetime | None = None
) -> Admission:
    """Claim every key that is due, if a run may start now; `finish_run` closes the claim.

    `event_key` is the key in the event that made the caller ask: it is named in the reason where it needs no run.
    """
    engine = open_outbox(root, params)
    reconcile(root, params)
    state = gather(root, params, engine, event_key)
    return consider(engine, params.trigger, state=state, now=now or utc_now(), forced=forced)


def finish_run(
    root: Path, params: Params, run_key: str, *, outcome: Outcome, model_uri: str | None, detail: str
) -> None:
    """Close the claim of a run that admission let in."""
    finish(open_outbox(root, params), run_key, outcome=outcome, model_uri=model_uri, detail=detail)


def gather(root: Path, params: Params, engine: Engine, event_key: str | None = None) -> FreshState:
    """Gather the facts for admission: the last model, what is new beside it, and which runs live."""
    # a key that is claimed may be due again by the time of the decision: its run was killed
    unspent = [item for item in entry_states(engine) if item.state != SPENT]
    model = latest_model(Store(root, params.registry))
    covered = {item.entry.key: model.uri for item in unspent if model and _answers(model.manifest, item)}
    waiting = [item for item in unspent if item.state in (WAITING, ABANDONED)]
    fresh = [item for item in waiting if item.entry.kind == "batch" and item.entry.key not in covered]
    alive, gone = _holders(runs(engine))
    return FreshState(
        new_records=_new_records(root, params, fresh, model),
        covered_by=covered,
        last_model_at=model.registered_at if model else None,
        alive=alive,
        gone=gone,
        holder=_this_process(),
        event_key=event_key,
    )


def _answers(manifest: Mapping[str, Any], item: EntryState) -> bool:
    """True if the version was trained on this batch, or made because of this finding."""
    if item.entry.kind == "batch":
        return item.entry.payload["batch"] in {batch["path"] for batch in manifest.get("raw_batches", ())}
    return item.entry.key in (manifest.get("trigger") or {}).get("keys", ())


def _new_records(root: Path, params: Params, fresh: Sequence[EntryState], model: LatestModel | None) -> dict[str, int]:
    if not fresh:
        return {}
    known = known_contents(root, model.manifest if model else None, params.curation)
    places = {item.entry.key: root / str(item.entry.payload["batch"]) for item in fresh}
    # one that is missing here (an older checkout) waits, and holds up nothing else
    batches = {key: path for key, path in places.items() if path.is_file()}
    return count_fresh(root, batches, known, params.feedback, params.curation)


def _this_process() -> dict[str, Any]:
    return {"host": platform.node(), "pid": os.getpid(), "born": _born(os.getpid())}


def _holders(known: Sequence[FreshRun]) -> tuple[frozenset[str], frozenset[str]]:
    """Open runs of this machine: whose process lives, and whose is gone. A reused pid is another process."""
    alive: set[str] = set()
    gone: set[str] = set()
    for run in known:
        if run.finished_at is None and run.holder is not None and run.holder["host"] == platform.node():
            lives = _born(int(run.holder["pid"])) == run.holder["born"]
            (alive if lives else gone).add(run.run_key)
    return frozenset(alive), frozenset(gone)


def _born(pid: int) -> str | None:
    """The start time of a process, as text that no change of the clock alters; None for no process, or a zombie."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        if not Path("/proc/self/stat").exists():
            return str(process.create_time())
        # Linux: ticks since boot; psutil's time moves when the clock is set
        ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}:{ticks}"
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        return None
