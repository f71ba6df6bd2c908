"""A summary of the log: answers, errors, refusals, violations, latencies and feedback, a line per version and role."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from plumbline.data_contracts.interactions import Interaction, InteractionFeedback, ServedCompletion
from plumbline.tasks.operations.serving.collect import LEFT


@dataclass(slots=True)
class _Group:
    answers: list[ServedCompletion] = field(default_factory=list)
    feedback: Counter[str] = field(default_factory=Counter)


def summarise(found: Iterable[tuple[Interaction, Sequence[InteractionFeedback]]]) -> list[dict[str, Any]]:
    """One line for each version in each role: champion, canary (users saw it) and shadow (nobody did)."""
    groups: dict[tuple[str, str], _Group] = defaultdict(_Group)
    for interaction, feedback in found:
        for place, answer in enumerate(interaction.answers):
            role = "shadow" if place else "canary" if interaction.canary else "champion"
            groups[(role, answer.model_uri)].answers.append(answer)
        shown = "canary" if interaction.canary else "champion"
        groups[(shown, interaction.answers[0].model_uri)].feedback.update(item.kind for item in feedback)
    return [_line(role, uri, group) for (role, uri), group in sorted(groups.items())]


def _line(role: str, uri: str, group: _Group) -> dict[str, Any]:
    answers = group.answers
    whole = [answer for answer in answers if answer.finish_reason != "error"]
    latencies = [answer.latency_ms for answer in whole]
    return {
        "role": role,
        "model_uri": uri,
        "answers": len(answers),
        "errors": sum(answer.finish_reason == "error" and answer.error != LEFT for answer in answers),
        "left": sum(answer.error == LEFT for answer in answers),
        "refusals": sum(answer.refusal for answer in whole),
        "violations": sum(answer.violation for answer in whole),
        "tokens": sum(answer.tokens for answer in answers),
        "latency_ms": {
            name: _quantile(latencies, share) for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
        },
        "feedback": dict(sorted(group.feedback.items())),
    }


def _quantile(values: Sequence[float], share: float) -> float | None:
    return float(np.quantile(values, share)) if values else None
