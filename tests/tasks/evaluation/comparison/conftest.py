"""Trials made up by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from plumbline.tasks.evaluation.comparison.budget import BudgetReading
from plumbline.tasks.evaluation.comparison.cost import Cost
from plumbline.tasks.evaluation.comparison.table import Trial


def _metrics(kl: float, ece: float | None) -> dict[str, Any]:
    refusals = {"refusal_accuracy": {"value": 0.9}, "over_refusal": {"value": 0.02}}
    return {
        "preference": {"accuracy": {"value": 0.7, "low": 0.6, "high": 0.8}},
        "calibration": {"ece": ece, "bins": [{"confidence": 0.6, "frequency": 0.7}]},
        "divergence": {"kl_nats_per_token": {"value": kl, "low": kl / 2, "high": kl * 2}},
        "safety": {"policy": refusals, "reference": refusals},
        "gold": {"judge_agreement": {"value": 0.8}},
        "reward_audit": {"passed": True, "accuracy": {"value": 0.7, "low": 0.68, "high": 0.72}},
    }


@pytest.fixture
def make_trial() -> Callable[..., Trial]:
    """A trial of a variant: outcomes by prompt, KL and CPU seconds."""

    def make(
        name: str,
        outcomes: dict[str, float],
        *,
        seed: int = 1,
        kl: float = 0.1,
        cpu: float = 10.0,
        ece: float | None = 0.1,
        methods: tuple[str, ...] = ("dpo",),
        readings: tuple[BudgetReading, ...] = (),
    ) -> Trial:
        cost = Cost(wall_seconds=cpu / 2, cpu_seconds=cpu, sessions=1, gpus=0, tokens_seen=1000, tokens_generated=0)
        verdicts = {"gold": outcomes, "judge": outcomes}
        settings = {"finetune.methods": list(methods)}
        return Trial(name, methods, settings, seed, _metrics(kl, ece), verdicts, cost, readings)

    return make
