"""The Prefect task around a stage: ask DVC, run what is dirty in its own process, commit, report.

DVC alone decides what to skip (Prefect caches values, not files), so the task itself is never
cached. It is not retried either: what fails for a transient reason is retried where it happens.
"""

from __future__ import annotations

import time

from prefect import task
from prefect.cache_policies import NO_CACHE

from plumbline.data_contracts.artifact import Artifact, read_artifact
from plumbline.tasks.pipeline.isolation import run_isolated
from plumbline.tasks.pipeline.session import Session
from plumbline.tasks.pipeline.stage import Stage, StageRecord
from plumbline.tasks.pipeline.watch import watch
from plumbline.tasks.storage.versioning.workspace import Versions


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
