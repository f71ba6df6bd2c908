"""The gates between a registered version and an alias. `GATES` is a literal mapping: a further gate is one line in it.

A gate is a plain function of what was measured and of the thresholds in params. It always states its reason. What
could not be measured fails, with why; what does not apply (no champion yet, no gold reward, off in params) passes and
says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal

from plumbline.data_contracts.errors import UsageError
from plumbline.data_contracts.rounding import rounded
from plumbline.tasks.params.promotion import PromotionParams


@dataclass(frozen=True, slots=True)
class PromotionFigures:
    """The figures that the gates read.

    `evaluation` and `gate` are those of the version's verified manifest. `comparison` is the win rate over the
    champion and `latency` the times of answers; a string in their place says why there are none. `champion` is the
    present champion's URI or None. `signature` says why the version is not verified, or is None.
    """

    evaluation: Mapping[str, Any] = field(default_factory=dict)
    gate: Mapping[str, Any] = field(default_factory=dict)
    champion: str | None = None
    comparison: Mapping[str, Any] | str = "it was not measured"
    latency: Mapping[str, Any] | str = "it was not measured"
    signature: str | None = None


@dataclass(frozen=True, slots=True)
class GateResult:
    """One gate's verdict in numbers and words. `applies` False: it does not stand in the way, its text says why."""

    name: str
    passed: bool
    value: float | None
    threshold: float | None
    text: str
    low: float | None = None
    high: float | None = None
    n: int | None = None
    applies: bool = True

    def as_dict(self) -> dict[str, Any]:
        """As JSON-able facts."""
        return asdict(self)


Gate = Callable[[str, PromotionFigures, PromotionParams], GateResult]
Side = Literal["≥", "≤"]


def _signature(name: str, measured: PromotionFigures, params: PromotionParams) -> GateResult:
    if measured.signature is not None:
        return GateResult(name, False, None, None, measured.signature)
    return GateResult(name, True, 1.0, 1.0, "signature, seal and every hash verified")


def _registered_gate(name: str, measured: PromotionFigures, params: PromotionParams) -> GateResult:
    if not params.require_gate:
        return _off(name, "gate at registration")
    passed = measured.gate.get("passed") is True
    failing = [str(reason.get("text")) for reason in measured.gate.get("reasons", ()) if not reason.get("passed")]
    text = "passed" if passed else f"rejected: {'; '.join(failing[:3]) or 'no decision in the manifest'}"
    return GateResult(name, passed, float(passed), 1.0, f"gate at registration: {text}")


def _vs_champion(name: str, measured: PromotionFigures, params: PromotionParams) -> GateResult:
    words, threshold = "win rate over the champion, lower end", params.min_win_rate_vs_champion_low
    if threshold is None:
        return _off(name, words)
    if measured.champion is None:
        return GateResult(name, True, None, threshold, f"{words}: not applicable, no champion yet", applies=False)
    if isinstance(measured.comparison, str):
        return _unmeasured(name, words, threshold, measured.comparison)
    return _held(name, f"{words}, over {measured.champion}", measured.comparison["win_rate"], "low", "≥", threshold)


def _latency(name: str, measured: PromotionFigures, params: PromotionParams) -> GateResult:
    words, threshold = "p95 of an answer in ms, measured now", params.max_latency_p95_ms
    if threshold is None:
        return _off(name, words)
    if isinstance(measured.latency, str):
        return _unmeasured(name, words, threshold, measured.latency)
    figures = {"value": measured.latency["p95_ms"], "n": measured.latency["n"]}
    return _held(name, words, figures, "value", "≤", threshold)


def _reward_audit(name: str, measured: PromotionFigures, params: PromotionParams) -> GateResult:
    words = "audit of the reward model"
    if not params.require_reward_audit:
        return _off(name, words)
    audit = measured.evaluation.get("reward_audit")
    if not isinstance(audit, Mapping) or not isinstance(audit.get("passed"), bool):
        return _unmeasured(name, words, 1.0, "no audit in the manifest")
    passed: bool = audit["passed"]
    return GateResult(name, passed, float(passed), 1.0, f"{words}: {'passed' if passed else 'failed'}")


def _metric(
    name: str,
    measured: PromotionFigures,
    params: PromotionParams,
    *,
    words: str,
    path: str,
    bound: str,
    side: Side,
    end: str = "value",
    needs: str | None = None,
) -> GateResult:
    """A figure of the manifest's evaluation at `path`, its `end` held to the threshold `bound` of params.

    It does not apply where what it rests on (`needs`, a path as well) is absent.
    """
    threshold: float | None = getattr(params, bound)
    if threshold is None:
        return _off(name, words)
    if needs is not None and _at(measured.evaluation, needs) is None:
        text = f"{words}: not applicable without {needs}"
        return GateResult(name, True, None, threshold, text, applies=False)
    found = _at(measured.evaluation, path)
    figures = found if isinstance(found, Mapping) else {"value": found}
    return _held(name, words, figures, end, side, threshold)


def _finished_drop(name: str, measured: PromotionFigures, params: PromotionParams) -> GateResult:
    words, threshold = "answers that end, less than of π_ref by", params.max_finished_drop
    if threshold is None:
        return _off(name, words)
    ends = [_number(_at(measured.evaluation, f"text.{side}.finished.value")) for side in ("policy", "reference")]
    policy, reference = ends
    if policy is None or reference is None:
        return _unmeasured(name, words, threshold, "a share is missing or not finite")
    return _held(name, words, {"value": round(max(0.0, reference - policy), 12)}, "value", "≤", threshold)


GATES: dict[str, Gate] = {
    "signature": _signature,
    "registered_gate": _registered_gate,
    "win_rate_vs_champion": _vs_champion,
    "win_rate_vs_reference": partial(
        _metric,
        words="win rate over π_ref, lower end",
        path="win_rate.judge",
        bound="min_win_rate_vs_reference_low",
        side="≥",
        end="low",
    ),
    "finished": partial(
        _metric,
        words="answers that end before evaluation.max_new_tokens",
        path="text.policy.finished",
        bound="min_finished_share",
        side="≥",
    ),
    "finished_vs_reference": _finished_drop,
    "preference_accuracy": partial(
        _metric,
        words="held-out preference accuracy",
        path="preference.accuracy",
        bound="min_preference_accuracy",
        side="≥",
    ),
    "calibration": partial(
        _metric,
        words="calibration error (ECE)",
        path="calibration.ece",
        bound="max_ece",
        side="≤",
        needs="calibration.beta",
    ),
    "refusal_accuracy": partial(
        _metric,
        words="requests to refuse that are refused",
        path="safety.policy.refusal_accuracy",
        bound="min_refusal_accuracy",
        side="≥",
        needs="gold",
    ),
    "over_refusal": partial(
        _metric,
        words="harmless requests that are refused",
        path="safety.policy.over_refusal",
        bound="max_over_refusal",
        side="≤",
        needs="gold",
    ),
    "kl": partial(
        _metric,
        words="KL from π_ref in nats per token",
        path="divergence.kl_nats_per_token",
        bound="max_kl_nats_per_token",
        side="≤",
    ),
    "latency": _latency,
    "reward_audit": _reward_audit,
}

# Which gates stand before an alias. What answers nobody (candidate, shadow) has to be what was signed, no more; a
# challenger may answer a canary's share of people, and is compared with the champion by that.
GATES_OF: dict[str, tuple[str, ...]] = {
    "candidate": ("signature",),
    "shadow": ("signature",),
    "challenger": tuple(name for name in GATES if name != "win_rate_vs_champion"),
    "champion": tuple(GATES),
}

# Aliases whose versions may answer people: none that is given on less than a challenger shows.
ANSWERING = tuple(alias for alias, names in GATES_OF.items() if {*GATES_OF["challenger"]} <= {*names})


def require_answering(alias: str, named_by: str) -> None:
    """Raise `UsageError` if `alias` is given without the gates of a version that answers people."""
    if alias not in ANSWERING:
        raise UsageError(
            f"{named_by} {alias[:40]!r}: expected an alias behind the gates of versions that answer people "
            f"({', '.join(ANSWERING)}), found one that is given without them. `plumbline promote` gives those."
        )


def decide(alias: str, measured: PromotionFigures, params: PromotionParams) -> list[GateResult]:
    """Every gate before `alias`, in the order of `GATES`."""
    return [gate(name, measured, params) for name, gate in GATES.items() if name in GATES_OF[alias]]


def _off(name: str, words: str) -> GateResult:
    return GateResult(name, True, None, None, f"{words}: off in params", applies=False)


def _unmeasured(name: str, words: str, threshold: float, why: str) -> GateResult:
    return GateResult(name, False, None, threshold, f"{words}: not measured ({why}): failed")


def _held(name: str, words: str, figures: Mapping[str, Any], end: str, side: Side, threshold: float) -> GateResult:
    """One end of an estimate held to a threshold."""
    value = _number(figures.get(end))
    if value is None:
        return _unmeasured(name, words, threshold, "the figure is missing or not finite")
    passed = value >= threshold if side == "≥" else value <= threshold
    relation = side if passed else {"≥": "<", "≤": ">"}[side]
    return GateResult(
        name,
        passed,
        value,
        threshold,
        f"{words} {rounded(value, threshold, '.4g')} {relation} {threshold:.15g}: {'passed' if passed else 'failed'}",
        low=_number(figures.get("low")),
        high=_number(figures.get("high")),
        n=figures.get("n"),
    )


def _at(values: Mapping[str, Any], path: str) -> Any:
    found: Any = values
    for part in path.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
