"""The gate: a literal list of checks on the metrics, each stating its reason whether it passes or fails."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from plumbline.data_contracts.rounding import rounded
from plumbline.tasks.params.evaluation import GateParams


@dataclass(frozen=True, slots=True)
class GateReason:
    """One check's verdict in numbers and words.

    A check that is turned off or does not apply has `applies` False and `passed` True: it does not
    stand in the way, and its text says why.
    """

    name: str
    passed: bool
    value: float | None
    threshold: float | None
    text: str
    applies: bool = True


@dataclass(frozen=True, slots=True)
class GateDecision:
    """`passed` when every reason is."""

    passed: bool
    reasons: tuple[GateReason, ...]


@dataclass(frozen=True, slots=True)
class _Check:
    """`threshold` names a field of GateParams; `metric` is a dotted path into the metrics.

    `only_with` names what the metric rests on, a key of `_RESTS_ON`: where that is absent, the check does not apply.
    """

    threshold: str
    metric: str
    side: Literal["≥", "≤"]
    words: str
    only_with: Literal["gold", "calibration.beta"] | None = None


CHECKS = (
    _Check("min_prompts", "win_rate.judge.n", "≥", "prompts judged"),
    _Check("min_win_rate_low", "win_rate.judge.low", "≥", "win rate over π_ref (judge), lower end"),
    _Check(
        "min_length_controlled_win_rate",
        "win_rate.judge.length_controlled.value",
        "≥",
        "win rate over π_ref (judge) at equal length",
    ),
    _Check(
        "min_gold_win_rate_low", "win_rate.gold.low", "≥", "win rate over π_ref (gold), lower end", only_with="gold"
    ),
    _Check(
        "min_finished_share",
        "text.policy.finished.value",
        "≥",
        "answers that end before evaluation.max_new_tokens",
    ),
    _Check("min_preference_accuracy", "preference.accuracy.value", "≥", "held-out preference accuracy"),
    _Check(
        "max_ece",
        "calibration.ece",
        "≤",
        "calibration error (ECE) of the implied probabilities",
        only_with="calibration.beta",
    ),
    _Check("max_kl_nats_per_token", "divergence.kl_nats_per_token.value", "≤", "KL from π_ref in nats per token"),
    _Check(
        "min_refusal_accuracy",
        "safety.policy.refusal_accuracy.value",
        "≥",
        "requests to refuse that are refused",
        only_with="gold",
    ),
    _Check(
        "max_over_refusal",
        "safety.policy.over_refusal.value",
        "≤",
        "harmless requests that are refused",
        only_with="gold",
    ),
)


_RESTS_ON = {
    "gold": "without a gold reward",
    "calibration.beta": "to a method that implies no probability of a preference",
}


def decide(metrics: Mapping[str, Any], params: GateParams) -> GateDecision:
    """Apply every check. A metric that is missing, null or not finite fails the check that needs it."""
    reasons = [_apply(check, metrics, getattr(params, check.threshold)) for check in CHECKS]
    reasons.append(_finished_drop(metrics, params.max_finished_drop))
    reasons.append(
        _audited("require_reward_audit", "reward model", metrics.get("reward_audit"), params.require_reward_audit)
    )
    if metrics.get("judge_audit") is not None:
        reasons.append(_audited("judge_audit", "held-out judge", metrics["judge_audit"], params.require_reward_audit))
    return GateDecision(all(reason.passed for reason in reasons), tuple(reasons))


def _apply(check: _Check, metrics: Mapping[str, Any], threshold: float | None) -> GateReason:
    value = _number_at(metrics, check.metric)
    if threshold is None:
        return GateReason(check.threshold, True, value, None, f"{check.words}: off in params", applies=False)
    if check.only_with is not None and _look_up(metrics, check.only_with) is None:
        text = f"{check.words}: not applicable {_RESTS_ON[check.only_with]}"
        return GateReason(check.threshold, True, None, threshold, text, applies=False)
    if value is None:
        text = f"{check.words}: not measured ({check.metric} is missing or not finite): failed"
        return GateReason(check.threshold, False, None, threshold, text)
    passed = value >= threshold if check.side == "≥" else value <= threshold
    relation = check.side if passed else {"≥": "<", "≤": ">"}[check.side]
    text = f"{check.words} {_number(value, threshold)} {relation} {threshold:.15g}: {'passed' if passed else 'failed'}"
    return GateReason(check.threshold, passed, value, threshold, text)


def _finished_drop(metrics: Mapping[str, Any], threshold: float | None) -> GateReason:
    """The drop of the share of answers that end, from π_ref to the policy."""
    name, words = "max_finished_drop", "answers that end, less than of π_ref by"
    policy, reference = (_number_at(metrics, f"text.{side}.finished.value") for side in ("policy", "reference"))
    if threshold is None:
        return GateReason(name, True, None, None, f"{words}: off in params", applies=False)
    if policy is None or reference is None:
        text = f"{words}: not measured (text.policy.finished or text.reference.finished is missing): failed"
        return GateReason(name, False, None, threshold, text)
    drop = round(max(0.0, reference - policy), 12)  # 0.4 less 0.3 is 0.1
    passed = drop <= threshold
    text = (
        f"{words} {_number(drop, threshold)} {'≤' if passed else '>'} {threshold:.15g} ({policy:.4g} against "
        f"{reference:.4g}): {'passed' if passed else 'failed'}"
    )
    return GateReason(name, passed, drop, threshold, text)


def _look_up(metrics: Mapping[str, Any], path: str) -> Any:
    found: Any = metrics
    for key in path.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _number_at(metrics: Mapping[str, Any], path: str) -> float | None:
    found = _look_up(metrics, path)
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        return None
    return found


def _number(value: float, threshold: float) -> str:
    """Four significant digits, more where a near miss would read as equal; a whole count as it is."""
    return rounded(value, threshold, ".4g") if isinstance(value, float) else str(value)


def _audited(name: str, model: str, audit: Mapping[str, Any] | None, required: bool) -> GateReason:
    if not required:
        return GateReason(name, True, None, None, f"audit of the {model}: off in params", applies=False)
    if audit is None or not isinstance(audit.get("passed"), bool):
        return GateReason(name, False, None, None, f"audit of the {model}: no audit was given: failed")
    passed: bool = audit["passed"]
    text = f"audit of the {model}: {'passed' if passed else 'failed'}"
    failing = [] if passed else _failing_reasons(audit)
    return GateReason(name, passed, float(passed), 1.0, text + (f" ({'; '.join(failing)})" if failing else ""))


def _failing_reasons(audit: Mapping[str, Any]) -> list[str]:
    """Words of the audit's own reasons, which are strings or mappings with `passed` and `text`."""
    words = []
    for reason in audit.get("reasons", ()):
        if isinstance(reason, str):
            words.append(reason)
        elif not reason.get("passed", False):
            words.append(str(reason.get("text", reason.get("name", reason))))
    return words
