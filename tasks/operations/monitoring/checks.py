"""The monitors: what each watches, and what it may conclude.

Sequential monitors share `alpha`: their e-values are adjusted together (`adjusted_log_e`), so that the chance that any
of them ever alarms on a champion as good as it should be is at most alpha. A new monitor is a function and a line in
`MONITORS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Literal

from plumbline.data_contracts.rounding import rounded
from plumbline.tasks.operations.monitoring.drift import FEATURES
from plumbline.tasks.operations.monitoring.observations import Observed
from plumbline.tasks.params.monitor import MonitorParams
from plumbline.tasks.statistics.anytime import (
    SequentialTest,
    adjusted_log_e,
    bounded_mean_sequence,
    log_e_of_looks,
    smallest_detectable_difference,
)

Verdict = Literal["fine", "finding", "not enough data", "not measured"]
Direction = Literal["below", "above"]
RIVAL = "win_rate_vs_previous"


@dataclass(frozen=True, slots=True)
class MonitorEvidence:
    """The evidence of a look: streams of observations, why a stream could not be measured, and figures beside them."""

    streams: Mapping[str, Observed]
    missing: Mapping[str, str] = field(default_factory=dict)
    recorded_win_rate_low: float | None = None  # lower end of the interval that the champion was registered with
    data_age_days: float | None = None
    newest_batch_days: float | None = None
    drift_words: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MonitorReading:
    """The reading of one monitor. `log_e` is None for one that is no sequential test."""

    name: str
    verdict: Verdict
    why: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    threshold: float | None = None
    smallest_difference: float | None = None
    log_e: float | None = None

    def as_json(self) -> dict[str, Any]:
        """The reading as JSON; infinite ends become null."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }


Check = Callable[[str, MonitorEvidence, MonitorParams], MonitorReading]


def read(evidence: MonitorEvidence, params: MonitorParams) -> list[MonitorReading]:
    """Every monitor's reading, their alarms judged together."""
    readings = [check(name, evidence, params) for name, check in MONITORS.items()]
    log_e = {reading.name: reading.log_e for reading in readings if reading.log_e is not None}
    return [_decide(reading, adjusted_log_e(log_e), params) for reading in readings]


def _decide(reading: MonitorReading, adjusted: Mapping[str, float], params: MonitorParams) -> MonitorReading:
    """A sequential reading with its verdict. Evidence counts from the first value on: it is never too early for it."""
    if reading.name not in adjusted:
        return reading
    evidence = adjusted[reading.name]
    words = f"evidence {math.exp(min(evidence, 50)):.3g} of {1 / params.alpha:.3g} needed"
    if evidence >= math.log(1 / params.alpha):
        return replace(reading, verdict="finding", why=f"{reading.why}; {words}")
    verdict: Verdict = "fine" if reading.n >= params.min_n else "not enough data"
    return replace(reading, verdict=verdict, why=f"{reading.why}; {words}")


def _mean(
    name: str,
    evidence: MonitorEvidence,
    params: MonitorParams,
    *,
    stream: str,
    words: str,
    threshold: str,
    direction: Direction,
) -> MonitorReading:
    """The mean of a stream in [0, 1], held to a threshold of params."""
    return _held(name, evidence, params, stream, words, float(getattr(params, threshold)), direction)


def _against_record(name: str, evidence: MonitorEvidence, params: MonitorParams) -> MonitorReading:
    """Held to the lower end: the record is an estimate too, and an unchanged champion is often below it."""
    record = evidence.recorded_win_rate_low
    if record is None:
        return MonitorReading(name, "not measured", "the champion was registered without a win rate")
    edge = min(1.0, max(0.0, record - params.win_rate_margin))
    words = f"win rate over π_ref on traffic (recorded at least {record:.3f})"
    return _held(name, evidence, params, "win_rate", words, edge, "below")


def _held(
    name: str,
    evidence: MonitorEvidence,
    params: MonitorParams,
    stream: str,
    words: str,
    threshold: float,
    direction: Direction,
) -> MonitorReading:
    seen = evidence.streams.get(stream, Observed())
    if not seen.looks:
        return MonitorReading(
            name, "not measured", evidence.missing.get(stream, "nothing seen yet"), threshold=threshold
        )
    test = SequentialTest(reference=threshold, alpha=params.alpha, direction=direction, restarting=True)
    for look in seen.looks:
        test.restart()
        test.extend(look)
    interval = bounded_mean_sequence(seen.values, alpha=params.alpha)
    edge = min(1 - 1e-6, max(1e-6, threshold))
    smallest = smallest_detectable_difference(
        interval.n, params.alpha / len(MONITORS), mean=edge, direction=direction, two_sided=False
    )
    side = "at least" if direction == "below" else "at most"
    why = (
        f"{words} {rounded(interval.mean, threshold, '.3f')} [{interval.low:.3f}, {interval.high:.3f}] of "
        f"{interval.n}, expected {side} {threshold:.15g}; a change by {smallest:.3g} would have been seen"
    )
    return MonitorReading(
        name, "fine", why, interval.mean, interval.low, interval.high, interval.n, threshold, smallest, test.log_e
    )


def _drift(name: str, evidence: MonitorEvidence, params: MonitorParams, *, feature: str) -> MonitorReading:
    stream = f"drift.{feature}"
    seen = evidence.streams.get(stream, Observed()).values
    if not seen:
        return MonitorReading(name, "not measured", evidence.missing.get("drift", "no look at drift yet"))
    n = len(evidence.streams.get("drift.prompts", Observed()).values)
    words = evidence.drift_words.get(feature, "no new prompts at this look")
    why = f"prompts, {feature}, over {len(seen)} looks: last p {seen[-1]:.3g}; {words}"
    return MonitorReading(name, "fine", why, value=seen[-1], n=n, log_e=log_e_of_looks(seen))


def _freshness(name: str, evidence: MonitorEvidence, params: MonitorParams) -> MonitorReading:
    age, newest = evidence.data_age_days, evidence.newest_batch_days
    if age is None:
        return MonitorReading(
            name, "not measured", evidence.missing.get("freshness", "no batch of the champion's data is here")
        )
    limit = params.max_data_age_days
    late = age > limit
    shown = rounded(age, limit, ".1f")
    why = f"newest feedback in the champion's data is {shown} days old, at most {limit:.15g} expected"
    if newest is not None:
        why += f"; the newest batch is {newest:.1f} days old"
    return MonitorReading(name, "finding" if late else "fine", why, value=age, n=1, threshold=limit)


MONITORS: dict[str, Check] = {
    "win_rate_vs_reference": partial(
        _mean, stream="win_rate", words="win rate over π_ref on traffic", threshold="min_win_rate", direction="below"
    ),
    "win_rate_vs_record": _against_record,
    RIVAL: partial(
        _mean,
        stream=RIVAL,
        words="win rate over the champion before, on traffic",
        threshold="min_win_rate_vs_previous",
        direction="below",
    ),
    "preference_accuracy": partial(
        _mean,
        stream="preference_accuracy",
        words="fresh labels that the reward model gets right",
        threshold="min_preference_accuracy",
        direction="below",
    ),
    "judge_agreement": partial(
        _mean,
        stream="judge_agreement",
        words="fresh labels on which the held-out judge agrees",
        threshold="min_judge_agreement",
        direction="below",
    ),
    "calibration": partial(
        _mean,
        stream="brier",
        words="Brier score of the reward model on fresh labels",
        threshold="max_brier",
        direction="above",
    ),
    "safety_violations": partial(
        _mean, stream="violation", words="share of unsafe answers", threshold="max_violation_rate", direction="above"
    ),
    "refusals": partial(
        _mean, stream="refusal", words="share of refusals", threshold="max_refusal_rate", direction="above"
    ),
    **{f"drift_{feature}": partial(_drift, feature=feature) for feature in FEATURES},
    "freshness": _freshness,
}
STREAMS = (
    "win_rate",
    RIVAL,
    "preference_accuracy",
    "judge_agreement",
    "brier",
    "violation",
    "refusal",
    "drift.prompts",
    *(f"drift.{feature}" for feature in FEATURES),
)
