"""Params of `monitor`."""

from __future__ import annotations

from pydantic import Field

from plumbline.tasks.params.section import Section


class MonitorParams(Section):
    """What the monitor flow watches."""

    alpha: float = Field(
        0.05,
        gt=0,
        lt=0.5,
        description="Chance that any sequential monitor ever raises a false alarm on one champion, all looks together.",
    )
    judged_per_look: int = Field(
        100, ge=1, description="Newest unjudged prompts of the champion's traffic that pi_ref answers too, per look."
    )
    labels_per_look: int = Field(500, ge=1, description="Fresh labelled pairs that are scored, per look.")
    traffic_days: float = Field(
        30.0, gt=0, description="Days of served answers that a look reads; older ones were looked at or are left out."
    )
    min_n: int = Field(30, ge=1, description="Values below which a monitor says 'not enough data'.")
    win_rate_margin: float = Field(
        0.03,
        ge=0,
        lt=1,
        description="Fall below the lower end of the champion's recorded win rate over pi_ref that is tolerated.",
    )
    min_win_rate: float = Field(0.5, gt=0, lt=1, description="Win rate over pi_ref that must be held.")
    min_win_rate_vs_previous: float = Field(
        0.5, gt=0, lt=1, description="Win rate over the champion before this one that must be held."
    )
    min_preference_accuracy: float = Field(
        0.55, gt=0, lt=1, description="Share of fresh labels that the reward model must get right; chance is 0.5."
    )
    min_judge_agreement: float = Field(
        0.55, gt=0, lt=1, description="Share of fresh labels on which the held-out judge must agree with people."
    )
    max_brier: float = Field(
        0.25,
        gt=0,
        lt=1,
        description="Brier score of the reward model's probabilities on fresh labels; always saying 0.5 has 0.25.",
    )
    max_violation_rate: float = Field(0.01, gt=0, lt=1, description="Share of served answers that break a safety rule.")
    max_refusal_rate: float = Field(0.3, gt=0, lt=1, description="Share of served answers that decline to help.")
    drift_reference: int = Field(2000, ge=50, description="Training prompts that traffic is compared with, at most.")
    drift_min_prompts: int = Field(30, ge=10, description="New prompts that a look at drift waits for.")
    drift_max_prompts: int = Field(1000, ge=10, description="New prompts that a look at drift draws, at most.")
    max_data_age_days: float = Field(
        30.0, gt=0, description="Days since the newest feedback in the champion's training data."
    )
