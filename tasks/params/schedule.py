"""Params of `schedule`, checked with the library whose copy Prefect's scheduler asks.

Prefect itself is not asked: importing it takes seconds, and every command reads its params.
"""

from __future__ import annotations

import difflib
from zoneinfo import available_timezones

from croniter import croniter
from pydantic import Field, field_validator

from plumbline.tasks.params.section import Section

_FIELDS = "expected five fields, `minute hour day-of-month month day-of-week`, such as 0 3 * * 1 (Mondays at 03:00)"
_DRAWN = frozenset("RH")  # croniter draws such a field at random; Prefect refuses it


class ScheduleParams(Section):
    """When the server runs what by itself."""

    retrain_cron: str | None = Field(
        default=None,
        description="Cron schedule of whole retraining runs: minute hour day-of-month month day-of-week; null: none. "
        "Fresh feedback starts runs by `trigger` all the same.",
    )
    poll_cron: str = Field(
        default="*/5 * * * *",
        description="Cron schedule of the freshness poll: it sends what is left in the outbox and starts the run of an "
        "event that was lost.",
    )
    monitor_cron: str = Field(default="0 6 * * *", description="Cron schedule of the monitor.")
    timezone: str = Field(default="UTC", description="Time zone of the schedules, by its IANA name.")
    busy_wait_h: float = Field(
        default=6.0,
        ge=0,
        description="Hours that a run which an event or a schedule started waits for a workspace in which another "
        "run is under way.",
    )

    @field_validator("timezone")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name != "UTC" and name not in available_timezones():
            near = difflib.get_close_matches(name, available_timezones(), n=1)
            hint = f"; did you mean {near[0]}?" if near else ", or UTC"
            raise ValueError(f"expected an IANA time zone such as Europe/Berlin{hint}")
        return name

    @field_validator("retrain_cron", "poll_cron", "monitor_cron")
    @classmethod
    def _runs_some_day(cls, cron: str | None) -> str | None:
        if cron is not None:
            check_cron(cron)
        return cron


def check_cron(cron: str) -> None:
    """Raise `ValueError`, saying what to write instead, unless Prefect takes the schedule and it has a next time."""
    fields = cron.split()
    if len(fields) != 5 and not cron.startswith("@"):
        # Six are valid to Prefect, which takes the sixth for seconds: hardly ever what was meant.
        raise ValueError(f"{_FIELDS}, found {len(fields)}")
    if not croniter.is_valid(cron) or _DRAWN.intersection(field.upper() for field in fields):
        raise ValueError(
            f"{_FIELDS}; minutes go from 0 to 59, hours to 23, days from 1 to 31, months to 12, weekdays from 0 "
            f"(Sunday) to 6"
        )
    try:
        croniter(cron).get_next()
    except ValueError as error:
        raise ValueError("expected a schedule that comes round, found one for a day that no month has") from error
