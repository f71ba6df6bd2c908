"""The checks that a model must pass: one table for the gate at registration and for the gates before an alias.

A check states its reason whether it passes or fails. What could not be measured fails, with why; what does not apply
(no champion yet, no gold reward, off in params) passes and says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from plumbline.data_contracts.figures import look_up, words_of
from plumbline.data_contracts.rounding import rounded
from plumbline.tasks.params.evaluation import GateParams
from plumbline.tasks.params.section import Section

Side = Literal["≥", "≤"]

REGISTRATION = "registration"
ALIASES = ("candidate", "shadow", "challenger", "champion")
_ANSWERING = ("challenger", "champion")
_REASON = ("name", "passed", "value", "threshold", "text", "applies")  # of a result, in `gate.json`
_RESTS_ON = {
    "gold": "without a gold reward",
    "calibration.beta": "to a method that implies no probability of a preference",
}


@dataclass(frozen=True, slots=True)
class GateFigures:
    """The figures that the checks read. `evaluation` is enough for the gate at registration.

    Before an alias `evaluation` and `gate` are those of the version's verified manifest. `comparison` is the win rate
    over the champion and `latency` the times of completions; a string in their place says why there are none.
    `champion` is the present champion's URI or None. `signature` says why the version is not verified, or is None.
    """

    evaluation: Mapping[str, Any] = field(default_factory=dict)
    gate: Mapping[str, Any] = field(default_factory=dict)
    champion: str | None = None
    comparison: Mapping[str, Any] | str = "it was not measured"
    latency: Mapping[str, Any] | str = "it was not measured"
    signature: str | None = None


@dataclass(frozen=True, slots=True)
class GateResult:
    """One check's verdict in numbers and words. `applies` False: it does not stand in the way, its text says why."""

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


@dataclass(frozen=True, slots=True)
class GateDecision:
    """`passed` when every reason is."""

    passed: bool
    reasons: tuple[GateResult, ...]

    def as_dict(self) -> dict[str, Any]:
        """The decision as `gate.json` and the manifest hold it."""
        reasons = [{key: getattr(reason, key) for key in _REASON} for reason in self.reasons]
        return {"passed": self.passed, "reasons": reasons}


@dataclass(frozen=True, slots=True)
class _Found:
    """A figure, or a verdict as 1 or 0. Without `value`, `note` says why; `over` says what it was compared with."""

    value: float | None = None
    note: str = ""
    over: str = ""
    low: float | None = None
    high: float | None = None
    n: int | None = None
    applies: bool = True


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the table.

    `before`: the registration and the aliases it stands before. `key`: its threshold, or its switch, in the section of
    params that fits (`gate` at registration, else `promotion`). `side`: None for a verdict. `reason` is its name at
    registration. `find` returns None if there is nothing to look at.
    """

    name: str
    words: str
    find: Callable[[GateFigures], _Found | None]
    side: Side | None
    before: tuple[str, ...]
    key: str | None = None
    reason: str | None = None


def decide(metrics: Mapping[str, Any], params: GateParams) -> GateDecision:
    """The gate at registration. A metric that is missing, null or not finite fails the check that needs it."""
    reasons = examine(REGISTRATION, GateFigures(metrics), params)
    return GateDecision(all(reason.passed for reason in reasons), tuple(reasons))


def examine(before: str, figures: GateFigures, params: Section) -> list[GateResult]:
    """Every check that stands before a registration or an alias, in the order of the table."""
    stand = ((check, check.find(figures)) for check in CHECKS if before in check.before)
    return [_result(check, found, before, params) for check, found in stand if found is not None]


def _result(check: Check, found: _Found, before: str, params: Section) -> GateResult:
    name = (check.reason if before == REGISTRATION else None) or check.name
    bound = True if check.key is None else getattr(params, check.key)
    if bound is None or bound is False:
        value = None if check.side is None else found.value
        return GateResult(name, True, value, None, f"{check.words}: off in params", applies=False)
    threshold = 1.0 if bound is True else bound
    value = found.value
    if value is None or not found.applies:
        return GateResult(
            name, not found.applies, None, threshold, f"{check.words}: {found.note}", applies=found.applies
        )
    passed = value <= threshold if check.side == "≤" else value >= threshold
    words = check.words + found.over
    if check.side is not None:
        relation = check.side if passed else {"≥": "<", "≤": ">"}[check.side]
        words += f" {_shown(value, threshold)} {relation} {threshold:.15g}"
    verdict, note = "passed" if passed else "failed", f" ({found.note})" if found.note else ""
    text = f"{words}: {verdict}{note}" if check.side is None else f"{words}{note}: {verdict}"
    return GateResult(name, passed, value, threshold, text, found.low, found.high, found.n)


def _estimate(estimate: Mapping[str, Any], end: str, what: str, over: str = "") -> _Found:
    """One end of an estimate, with its interval."""
    value, low, high = (_number(estimate.get(key)) for key in (end, "low", "high"))
    if value is None:
        return _unmeasured(f"{what} is missing or not finite")
    return _Found(value, over=over, low=low, high=high, n=estimate.get("n"))


def _unmeasured(why: str) -> _Found:
    return _Found(note=f"not measured ({why}): failed")


def _prompts(figures: GateFigures) -> _Found:
    return _estimate({"value": look_up(figures.evaluation, "win_rate.judge.n")}, "value", "win_rate.judge.n")


def _finished_drop(figures: GateFigures) -> _Found:
    """The drop of the share of completions that end, from π_ref to the policy."""
    paths = (f"text.{side}.finished.value" for side in ("policy", "reference"))
    policy, reference = (_number(look_up(figures.evaluation, path)) for path in paths)
    if policy is None or reference is None:
        return _unmeasured("text.policy.finished or text.reference.finished is missing")
    drop = round(max(0.0, reference - policy), 12)  # 0.4 less 0.3 is 0.1
    return _Found(drop, note=f"{policy:.4g} against {reference:.4g}")


def _reward_audit(figures: GateFigures) -> _Found:
    return _audit(figures.evaluation.get("reward_audit"))


def _judge_audit(figures: GateFigures) -> _Found | None:
    """A run without a judge of its own has no such audit."""
    audit = figures.evaluation.get("judge_audit")
    return None if audit is None else _audit(audit)


def _audit(audit: Any) -> _Found:
    """An audit's reasons are strings, or mappings with `passed` and `text`."""
    if not isinstance(audit, Mapping) or not isinstance(audit.get("passed"), bool):
        return _Found(note="no audit was given: failed")
    passed: bool = audit["passed"]
    return _Found(float(passed), note="" if passed else "; ".join(_failing(audit.get("reasons", ()))))


def _failing(reasons: Any) -> list[str]:
    return [
        reason if isinstance(reason, str) else str(reason.get("text", reason.get("name", reason)))
        for reason in reasons
        if isinstance(reason, str) or not reason.get("passed", False)
    ]


def _signature(figures: GateFigures) -> _Found:
    return _Found(float(figures.signature is None), note=figures.signature or "")


def _registered_gate(figures: GateFigures) -> _Found:
    passed = figures.gate.get("passed") is True
    failing = _failing(figures.gate.get("reasons", ()))
    note = "" if passed else "; ".join(failing[:3]) or "no decision in the manifest"
    return _Found(float(passed), note=note)


def _vs_champion(figures: GateFigures) -> _Found:
    if figures.champion is None:
        return _Found(note="not applicable, no champion yet", applies=False)
    if isinstance(figures.comparison, str):
        return _unmeasured(figures.comparison)
    return _estimate(figures.comparison["win_rate"], "low", "the figure", f", over {figures.champion}")


def _latency(figures: GateFigures) -> _Found:
    if isinstance(figures.latency, str):
        return _unmeasured(figures.latency)
    return _estimate({"value": figures.latency["p95_ms"], "n": figures.latency["n"]}, "value", "the figure")


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def _shown(value: float, threshold: float) -> str:
    """Four significant digits, more where a near miss would read as equal; a whole count as it is."""
    return rounded(value, threshold, ".4g") if isinstance(value, float) else str(value)


def _figure(
    name: str,
    key: str,
    side: Side,
    figure: str,
    end: Literal["value", "low"] = "value",
    *,
    needs: str | None = None,
    before: tuple[str, ...] = (REGISTRATION, *_ANSWERING),
) -> Check:
    """A check of one end of a figure of the evaluation. It does not apply where what it rests on (`needs`) is absent.

    At registration it is named as its threshold is.
    """

    def find(figures: GateFigures) -> _Found:
        if needs is not None and look_up(figures.evaluation, needs) is None:
            return _Found(note=f"not applicable {_RESTS_ON[needs]}", applies=False)
        found = look_up(figures.evaluation, figure)
        return _estimate(found if isinstance(found, Mapping) else {"value": found}, end, figure)

    words = words_of(figure) + (", lower end" if end == "low" else "")
    return Check(name, words, find, side, before, key, reason=key)


_REGISTRATION = (REGISTRATION,)

# What answers nobody (candidate, shadow) has to be what was signed, no more. A challenger may answer a canary's share
# of people, and is compared with the champion by that.
CHECKS = (
    Check("signature", "signature, seal and every hash", _signature, None, ALIASES),
    Check("registered_gate", "gate at registration", _registered_gate, None, _ANSWERING, "require_gate"),
    Check(
        "win_rate_vs_champion",
        "win rate over the champion, lower end",
        _vs_champion,
        "≥",
        ("champion",),
        "min_win_rate_vs_champion_low",
    ),
    Check("min_prompts", "prompts judged", _prompts, "≥", _REGISTRATION, "min_prompts"),
    _figure("win_rate_vs_reference", "min_win_rate_low", "≥", "win_rate.judge", "low"),
    _figure(
        "length_controlled_win_rate",
        "min_length_controlled_win_rate",
        "≥",
        "win_rate.judge.length_controlled",
        before=_REGISTRATION,
    ),
    _figure(
        "gold_win_rate_low", "min_gold_win_rate_low", "≥", "win_rate.gold", "low", needs="gold", before=_REGISTRATION
    ),
    _figure("finished", "min_finished_share", "≥", "text.policy.finished"),
    _figure("preference_accuracy", "min_preference_accuracy", "≥", "preference.accuracy"),
    _figure("calibration", "max_ece", "≤", "calibration.ece", needs="calibration.beta"),
    _figure("kl", "max_kl_nats_per_token", "≤", "divergence.kl_nats_per_token"),
    _figure("refusal_accuracy", "min_refusal_accuracy", "≥", "safety.policy.refusal_accuracy", needs="gold"),
    _figure("over_refusal", "max_over_refusal", "≤", "safety.policy.over_refusal", needs="gold"),
    Check(
        "finished_vs_reference",
        "completions that end, less than of π_ref by",
        _finished_drop,
        "≤",
        (REGISTRATION, *_ANSWERING),
        "max_finished_drop",
        "max_finished_drop",
    ),
    Check("latency", "p95 of a completion in ms, measured now", _latency, "≤", _ANSWERING, "max_latency_p95_ms"),
    Check(
        "reward_audit",
        "audit of the reward model",
        _reward_audit,
        None,
        (REGISTRATION, *_ANSWERING),
        "require_reward_audit",
        "require_reward_audit",
    ),
    Check("judge_audit", "audit of the held-out judge", _judge_audit, None, _REGISTRATION, "require_reward_audit"),
)
