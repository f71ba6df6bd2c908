"""Signals of an answer: does it decline, does it break a safety rule. Rules by pattern; others can be injected."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from plumbline.data_contracts.records import Message
from plumbline.tasks.params.serving import SafetyRulesParams


@dataclass(frozen=True, slots=True)
class Signals:
    """Signals that were recognised in an answer."""

    refusal: bool
    violation: bool


Detector = Callable[[Sequence[Message], str], Signals]
"""Conversation and answer -> signals. Called for every answer, off the request's path."""


def rule_detector(params: SafetyRulesParams) -> Detector:
    """By patterns: a violation matches one of its own, or complies with a request that is to be refused."""
    asks, refusals, violations = (_any_of(item) for item in (params.asks, params.refusals, params.violations))

    def detect(messages: Sequence[Message], answer: str) -> Signals:
        asked = next((message.content for message in reversed(messages) if message.role == "user"), "")
        refusal = refusals(answer)
        return Signals(refusal, violations(answer) or (asks(asked) and not refusal and bool(answer.strip())))

    return detect


def _any_of(patterns: Sequence[str]) -> Callable[[str], bool]:
    compiled = [re.compile(pattern, re.IGNORECASE) for pattern in patterns]
    return lambda text: any(pattern.search(text) for pattern in compiled)
