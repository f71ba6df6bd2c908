"""Params of `trigger`."""

from __future__ import annotations

from pydantic import Field

from plumbline.tasks.params.section import Section


class TriggerParams(Section):
    """When a retraining run is due. A batch or a finding gives at most one run that ends well."""

    min_new_records: int = Field(
        default=500,
        ge=1,
        description="New curated records that start a run: pairs of waiting batches that pass the contract and the "
        "per-row steps of curation, and whose content the last registered model's dataset does not hold.",
    )
    max_age_days: float = Field(
        default=7.0,
        gt=0,
        description="Days since the last run after which a single new record is enough; without any run, days since "
        "the oldest waiting batch came in.",
    )
    max_runs_per_week: int = Field(
        default=7,
        ge=1,
        description="Runs that fresh data and findings may start in any 7 days, failed and killed ones included.",
    )
    debounce_s: float = Field(
        default=60.0,
        ge=0,
        description="Seconds of quiet since the newest waiting batch before a run starts, so that an upload of several "
        "files gives one run. 0: at once.",
    )
    max_wait_s: float = Field(
        default=1800.0,
        ge=0,
        description="Seconds after which a waiting batch no longer waits for quiet, so that a steady stream of batches "
        "cannot put a run off for ever.",
    )
    max_attempts: int = Field(
        default=3,
        ge=1,
        description="Runs that one batch or finding may start in all, where each failed or was killed.",
    )
    retry_delay_s: float = Field(
        default=900.0, ge=0, description="Seconds after a failed run before its batches are due again."
    )
    claim_timeout_s: float = Field(
        default=86_400.0,
        gt=0,
        description="Seconds after which a run on another machine that never reported its end counts as killed. On "
        "this machine the process is looked up instead, and a dead one counts as killed at once.",
    )
    confirm_timeout_s: float = Field(
        default=20.0,
        gt=0,
        description="Seconds to wait for the Prefect server to confirm an emitted event (it writes events every 5 s); "
        "an unconfirmed one stays in the outbox and is sent again.",
    )
