"""Params of `promotion`: what a version must show before an alias that serves people names it."""

from __future__ import annotations

from pydantic import Field

from plumbline.tasks.params.thresholds import Thresholds


class PromotionParams(Thresholds):
    """What a version must show to be promoted; null turns a gate off, on record."""

    min_win_rate_vs_champion_low: float | None = Field(
        0.45,
        ge=0,
        le=1,
        description="Lower end of the interval of the win rate over the champion, by the challenger's judge. 0.5 "
        "demands a model that is better; 0.45 one that is not worse by five points.",
    )
    max_latency_p95_ms: float | None = Field(
        5000.0,
        gt=0,
        description="95th percentile of the time of one answer, in milliseconds, measured at promotion on this "
        "machine: one request at a time, up to evaluation.max_new_tokens tokens.",
    )
    require_gate: bool = Field(True, description="The version must have passed the gate it was registered with.")
    max_prompts: int = Field(
        512,
        ge=1,
        description="Distinct test prompts that champion and challenger both answer. 512 bound a 95 % interval of a "
        "win rate to ±0.04; 2,048 to ±0.02.",
    )
    latency_prompts: int = Field(32, ge=1, le=1000, description="Answers that are timed, one at a time.")
