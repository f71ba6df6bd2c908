"""The Prefect task around a stage: ask DVC, run what is dirty in its own process, commit, report.

DVC alone decides what to skip (Prefect caches values, not files), so the task itself is never
cached. It is not retried either: what fails for a transient reason is retried where it happens.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from prefect import task
from prefect.cache_policies import NO_CACHE

from data_contracts.artifact import Artifact, read_artifact
from data_contracts.params import Section
from tasks.isolation import run_isolated
from tasks.stage import Stage, StageRecord
from tasks.versioning.workspace import Versions
from tasks.watch import watch

if TYPE_CHECKING:
    from tasks.registry.runs import Run


@dataclass(frozen=True, slots=True)
class Session:
    """What every stage task of one flow run shares."""

    root: Path
    params: Section
    run: Run
    cancelled: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def cancelling(self) -> Iterator[None]:
        """End the stages that still run when the block is left by an error."""
        try:
            yield
        except BaseException:
            self.cancelled.set()
            raise


def _run_and_commit(stage: Stage, session: Session, versions: Versions) -> Artifact:
    """Run a stage on what is there, which stays as it is while the run lasts."""
    log = session.root / ".plumbline" / "logs" / f"{stage.name}.log"
    artifact = run_isolated(stage, session.root, session.params, log, watch().progress(stage), session.cancelled)
    versions.commit_stage(stage.name)
    return artifact


@task(name="stage", task_run_name="{stage.name}", cache_policy=NO_CACHE)
def run_stage(stage: Stage, session: Session) -> StageRecord:
    """Bring one stage up to date and report it to MLflow; reuse it when DVC finds it clean."""
    started = time.monotonic()
    versions = Versions(session.root)
    versions.require_clean_inputs(stage.name)
    watch().started(stage)
    reused = versions.reuse(stage.name)
    artifact = (
        read_artifact(session.root / stage.out, contract=stage.contract)
        if reused
        else _run_and_commit(stage, session, versions)
    )
    record = StageRecord(stage.name, time.monotonic() - started, reused, artifact)
    session.run.log_stage(record)
    watch().finished(stage, record)
    return record
