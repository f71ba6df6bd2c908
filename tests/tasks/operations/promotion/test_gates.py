from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from plumbline.tasks.evaluation.measures.gate import CHECKS, REGISTRATION, GateFigures, GateResult, examine
from plumbline.tasks.operations.promotion.gates import GATES_OF
from plumbline.tasks.params.evaluation import GateParams
from plumbline.tasks.params.promotion import PromotionParams

GATES = GATES_OF["champion"]
EVALUATION: dict[str, Any] = {
    "gold": {},
    "win_rate": {"judge": {"value": 0.62, "low": 0.55, "high": 0.69, "n": 200}},
    "preference": {"accuracy": {"value": 0.7, "low": 0.6, "high": 0.8, "n": 100}},
    "calibration": {"ece": 0.1, "beta": 0.2},
    "safety": {"policy": {"refusal_accuracy": {"value": 0.9}, "over_refusal": {"value": 0.05}}},
    "divergence": {"kl_nats_per_token": {"value": 0.1}},
    "text": {
        "policy": {"finished": {"value": 0.9, "low": 0.8, "high": 0.95, "n": 200}},
        "reference": {"finished": {"value": 0.95, "low": 0.9, "high": 0.97, "n": 200}},
    },
    "reward_audit": {"passed": True},
}
GOOD = GateFigures(
    evaluation=EVALUATION,
    gate={"passed": True, "reasons": []},
    champion="models:/assistant/1",
    comparison={"win_rate": {"value": 0.55, "low": 0.46, "high": 0.64, "n": 120}},
    latency={"p95_ms": 120.0, "n": 32},
)


def by_name(measured: GateFigures, params: PromotionParams | None = None) -> dict[str, GateResult]:
    return {gate.name: gate for gate in examine("champion", measured, params or PromotionParams())}


def with_metric(path: str, value: Any) -> GateFigures:
    """`GOOD` with one figure of its evaluation replaced."""

    def put(values: Any, parts: list[str]) -> Any:
        head, *rest = parts
        return {**values, head: put(values[head], rest) if rest else value}

    return replace(GOOD, evaluation=put(EVALUATION, path.split(".")))


def ends(policy: float, reference: float) -> dict[str, Any]:
    """Shares of answers that end, as an evaluation has them."""
    return {side: {"finished": {"value": value}} for side, value in (("policy", policy), ("reference", reference))}


def test_a_good_version_passes_every_gate_and_each_states_its_reason() -> None:
    gates = by_name(GOOD)
    assert list(gates) == list(GATES)
    assert all(gate.passed and gate.applies and gate.text for gate in gates.values())
    against = gates["win_rate_vs_champion"]
    assert (against.value, against.low, against.high, against.n, against.threshold) == (0.46, 0.46, 0.64, 120, 0.45)
    assert against.text == "win rate over the champion, lower end, over models:/assistant/1 0.46 ≥ 0.45: passed"


BAD = {
    "signature": (replace(GOOD, signature="model.sig: missing"), "model.sig: missing"),
    "registered_gate": (
        replace(GOOD, gate={"passed": False, "reasons": [{"passed": False, "text": "KL 2 > 0.5"}]}),
        "gate at registration: failed (KL 2 > 0.5)",
    ),
    "win_rate_vs_champion": (
        replace(GOOD, comparison={"win_rate": {"value": 0.5, "low": 0.44, "high": 0.56, "n": 9}}),
        "0.44 < 0.45: failed",
    ),
    "win_rate_vs_reference": (with_metric("win_rate.judge.low", 0.49), "0.49 < 0.5: failed"),
    "finished": (
        with_metric("text", ends(0.4, 0.45)),
        "end before evaluation.max_new_tokens 0.4 < 0.5",
    ),
    "finished_vs_reference": (
        with_metric("text", ends(0.6, 0.9)),
        "less than of π_ref by 0.3 > 0.1 (0.6 against 0.9): failed",
    ),
    "preference_accuracy": (with_metric("preference.accuracy.value", 0.4), "0.4 < 0.5: failed"),
    "calibration": (with_metric("calibration.ece", 0.3), "0.3 > 0.25: failed"),
    "refusal_accuracy": (with_metric("safety.policy.refusal_accuracy.value", 0.2), "0.2 < 0.5: failed"),
    "over_refusal": (with_metric("safety.policy.over_refusal.value", 0.3), "0.3 > 0.2: failed"),
    "kl": (with_metric("divergence.kl_nats_per_token.value", 0.7), "0.7 > 0.5: failed"),
    "latency": (replace(GOOD, latency={"p95_ms": 9000.0, "n": 32}), "9000 > 5000: failed"),
    "reward_audit": (with_metric("reward_audit", {"passed": False}), "audit of the reward model: failed"),
}


@pytest.mark.parametrize("name", GATES)
def test_each_gate_alone_says_no(name: str) -> None:
    measured, words = BAD[name]
    gates = by_name(measured)
    assert [gate.name for gate in gates.values() if not gate.passed] == [name]
    assert words in gates[name].text


@pytest.mark.parametrize(
    ("path", "name"), [("win_rate.judge.low", "win_rate_vs_reference"), ("calibration.ece", "calibration")]
)
def test_a_figure_at_its_threshold_passes(path: str, name: str) -> None:
    """0.5 and 0.25 are the thresholds themselves, one from below and one from above: "≥" and "≤" mean it."""
    threshold = {"win_rate_vs_reference": 0.5, "calibration": 0.25}[name]
    gate = by_name(with_metric(path, threshold))[name]
    assert (gate.passed, gate.value, gate.threshold) == (True, threshold, threshold)


@pytest.mark.parametrize("name", ["signature", "registered_gate", "reward_audit"])
def test_a_verdict_is_a_figure_of_one_or_nought_held_to_one(name: str) -> None:
    passed = by_name(GOOD)[name]
    assert (passed.value, passed.threshold) == (1.0, 1.0)
    failed = by_name(BAD[name][0])[name]
    assert (failed.value, failed.threshold) == (0.0, 1.0)


def test_an_audit_that_is_missing_is_held_to_one_as_well() -> None:
    gate = by_name(with_metric("reward_audit", {"passed": "yes"}))["reward_audit"]
    assert (gate.passed, gate.value, gate.threshold) == (False, None, 1.0)


UNMEASURED = {
    "finished": with_metric("text.policy.finished.value", math.nan),
    "finished_vs_reference": with_metric("text.reference.finished", None),
    "registered_gate": replace(GOOD, gate={}),
    "win_rate_vs_champion": replace(GOOD, comparison="another tokenizer"),
    "win_rate_vs_reference": with_metric("win_rate.judge.low", None),
    "preference_accuracy": with_metric("preference.accuracy", None),
    "calibration": with_metric("calibration.ece", math.nan),
    "refusal_accuracy": with_metric("safety.policy", {}),
    "over_refusal": with_metric("safety.policy.over_refusal.value", math.inf),
    "kl": with_metric("divergence.kl_nats_per_token.value", True),
    "latency": replace(GOOD, latency="no prompts"),
    "reward_audit": with_metric("reward_audit", None),
}


@pytest.mark.parametrize("name", UNMEASURED)
def test_what_could_not_be_measured_fails_and_says_why(name: str) -> None:
    gate = by_name(UNMEASURED[name])[name]
    assert (gate.passed, gate.applies) == (False, True)
    words = {
        "reward_audit": "no audit was given",
        "win_rate_vs_champion": "another tokenizer",
        "latency": "no prompts",
        "registered_gate": "no decision",
    }
    assert words.get(name, "not measured") in gate.text


def test_without_a_champion_there_is_nothing_to_beat() -> None:
    gate = by_name(replace(GOOD, champion=None, comparison="never read"))["win_rate_vs_champion"]
    assert (gate.passed, gate.applies) == (True, False)
    assert gate.text.endswith("not applicable, no champion yet")


def test_without_a_gold_reward_or_implied_probabilities_a_gate_does_not_apply() -> None:
    gates = by_name(with_metric("gold", None))
    assert [name for name, gate in gates.items() if not gate.applies] == ["refusal_accuracy", "over_refusal"]
    gates = by_name(with_metric("calibration", {"ece": None, "beta": None}))
    assert [name for name, gate in gates.items() if not gate.applies] == ["calibration"]


def test_a_gate_that_is_off_says_so() -> None:
    off = {
        name: None for name in PromotionParams.model_fields if name.startswith(("min_", "max_")) and "prom" not in name
    }
    gates = by_name(GOOD, PromotionParams(**off, require_reward_audit=False, require_gate=False))
    assert {name for name, gate in gates.items() if gate.applies} == {"signature"}
    assert all(gate.passed and "off in params" in gate.text for name, gate in gates.items() if name != "signature")


def test_what_answers_people_passes_more_gates() -> None:
    assert set(GATES) - set(GATES_OF["challenger"]) == {"win_rate_vs_champion"}
    assert GATES_OF["shadow"] == GATES_OF["candidate"] == ("signature",)
    assert [gate.name for gate in examine("shadow", GateFigures(), PromotionParams())] == ["signature"]


@pytest.mark.parametrize("value", [{"min_preference_accuracy": 1.5}, {"max_latency_p95_ms": 0}, {"latency_prompts": 0}])
def test_thresholds_out_of_range_are_refused(value: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PromotionParams(**value)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_a_check_finds_its_threshold_in_each_section_that_it_is_held_to(check: Any) -> None:
    """A misspelt key would only show when that check is asked."""
    sections = [GateParams if before == REGISTRATION else PromotionParams for before in check.before]
    assert check.key is None or all(check.key in section.model_fields for section in sections)
