"""One row a variant, from what its trials left: win rates, accuracy, calibration, KL, refusals, time, tokens, cost.

A trial is a variant under one seed. Over several seeds a figure is the mean of theirs, and the interval of a win
rate that of the prompts' mean outcomes; other intervals reach from the lowest end to the highest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from plumbline.data_contracts.errors import StageError
from plumbline.data_contracts.figures import look_up
from plumbline.tasks.evaluation.comparison.budget import BudgetReading
from plumbline.tasks.evaluation.comparison.cost import Cost
from plumbline.tasks.evaluation.comparison.recommend import FigureInterval, explores
from plumbline.tasks.params.comparison import CompareParams
from plumbline.tasks.statistics import paired_bootstrap

Floats = NDArray[np.float64]
JUDGES = ("gold", "judge")
LITERATURE = (2.0, 5.0)
"""The multiple of DPO's training time that PPO is said to take ("what are PPO, GRPO, DPO", cost and complexity)."""


@dataclass(frozen=True, slots=True)
class Trial:
    """The results of one variant under one seed: metrics, outcomes against π_ref by prompt and judge, cost.

    `outcomes` maps gold and judge to {id of a prompt: 1 a win, ½ a tie, 0 a loss}; `readings` are the evaluations that
    training made on validation prompts; `warnings` what training and evaluation warned of.
    """

    variant: str
    methods: tuple[str, ...]
    settings: Mapping[str, Any]
    seed: int
    metrics: Mapping[str, Any]
    outcomes: Mapping[str, Mapping[str, float]]
    cost: Cost
    readings: tuple[BudgetReading, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TrialRow:
    """One variant over its seeds. `win` by judge name; KL in nats per token; seconds and cost are means of a trial.

    `readings` of each seed are the evaluations during its training.
    """

    name: str
    methods: tuple[str, ...]
    settings: Mapping[str, Any]
    seeds: tuple[int, ...]
    win: Mapping[str, FigureInterval]
    win_by_seed: Mapping[str, tuple[float, ...]]
    accuracy: FigureInterval
    ece: float | None
    kl: FigureInterval
    refused: float | None
    over_refused: float | None
    agreement: float | None
    finished: float | None
    finished_reference: float | None
    wall_seconds: float
    cpu_seconds: float
    sessions: int
    tokens_seen: float | None
    tokens_generated: float | None
    cost: float
    readings: tuple[tuple[BudgetReading, ...], ...] = ()


def read_outcomes(evaluation: Path) -> dict[str, dict[str, float]]:
    """Outcome of each prompt of an evaluation's `samples.jsonl`, by judge: 1, ½ or 0, by the id of its pair."""
    found: dict[str, dict[str, float]] = {}
    for line in (evaluation / "samples.jsonl").read_bytes().splitlines():
        sample = orjson.loads(line)
        for judge, score in sample["scores"].items():
            won = (np.sign(score["policy"] - score["reference"]) + 1) / 2
            found.setdefault(judge, {})[sample["pair_id"]] = float(won)
    return found


def rows_of(
    trials: Sequence[Trial], params: CompareParams, *, confidence: float, resamples: int, seed: int
) -> list[TrialRow]:
    """One row a variant, in the order of the trials. Interval of win rates: bootstrap over prompts."""
    grouped: dict[str, list[Trial]] = {}
    for trial in trials:
        grouped.setdefault(trial.variant, []).append(trial)
    return [_row(group, params, confidence, resamples, seed) for group in grouped.values()]


def shared_outcomes(trials: Sequence[Trial], judge: str) -> dict[str, Floats]:
    """Outcomes (S, n) of each variant on the n prompts that all trials were judged on, in one order.

    Raises `StageError` when no prompt is shared.
    """
    shared = set.intersection(*(set(trial.outcomes[judge]) for trial in trials))
    if not shared:
        raise StageError(
            f"Expected variants to share prompts with a verdict by {judge}, found none. Raise evaluation.max_prompts, "
            f"or feed more pairs."
        )
    ids = sorted(shared)
    found: dict[str, list[list[float]]] = {}
    for trial in trials:
        found.setdefault(trial.variant, []).append([trial.outcomes[judge][name] for name in ids])
    return {name: np.array(values, dtype=np.float64) for name, values in found.items()}


def headline_judge(trials: Sequence[Trial]) -> str:
    """Gold where every trial has it, else the judge."""
    return "gold" if all("gold" in trial.outcomes for trial in trials) else "judge"


def pareto_front(rows: Sequence[TrialRow], judge: str) -> list[str]:
    """Names of the variants that none beats in win rate, KL and CPU seconds at once.

    A row is off the front when another is at least as good in all three and better in one.
    """
    points = {
        row.name: (-_or(row.win[judge].value, -math.inf), _or(row.kl.value, math.inf), row.cpu_seconds) for row in rows
    }
    return [
        name
        for name, mine in points.items()
        if not any(other != mine and all(a <= b for a, b in zip(other, mine, strict=True)) for other in points.values())
    ]


def time_ratios(rows: Sequence[TrialRow], reward_seconds: float | None) -> dict[str, Any] | None:
    """Training time of the first variant of each other method over that of the first plain DPO; None without DPO.

    `reward_seconds` is the wall-clock time that the reward model took, None if it is not known: what learns from it
    (PPO, GRPO) is shown with it too, DPO does not need it.
    """
    first: dict[tuple[str, ...], TrialRow] = {}
    for row in rows:
        first.setdefault(row.methods, row)
    dpo = first.pop(("dpo",), None)
    if dpo is None or not first:
        return None

    def ratio(row: TrialRow) -> dict[str, float]:
        found = {"wall": row.wall_seconds / dpo.wall_seconds, "cpu": row.cpu_seconds / dpo.cpu_seconds}
        if explores(row.methods) and reward_seconds is not None:
            found["wall_with_reward_model"] = (row.wall_seconds + reward_seconds) / dpo.wall_seconds
        return found

    ratios = {"+".join(methods): ratio(row) for methods, row in first.items()}
    return {
        "over": dpo.name,
        "reward_model_seconds": reward_seconds,
        "ratios": ratios,
        "literature_ppo": list(LITERATURE),
    }


def as_json(row: TrialRow) -> dict[str, Any]:
    """A row as JSON-able facts."""
    return asdict(row)


HEADER = (
    "variant",
    "gold win rate",
    "judge win rate",
    "answers ended / π_ref's",
    "pref. accuracy",
    "ECE",
    "KL nats/token",
    "train s",
    "CPU s",
    "tokens seen",
    "generated",
    "cost",
    "refused / over",
    "Pareto",
)


def cells(rows: Sequence[TrialRow], front: Sequence[str]) -> list[tuple[str, ...]]:
    """The table's cells as text, a tuple a variant, under `HEADER`."""
    return [
        (
            row.name,
            _with_ends(row.win.get("gold")),
            _with_ends(row.win.get("judge")),
            f"{_share(row.finished)} / {_share(row.finished_reference)}",
            _with_ends(row.accuracy),
            "-" if row.ece is None else f"{row.ece:.3f}",
            _with_ends(row.kl),
            f"{row.wall_seconds:.1f}",
            f"{row.cpu_seconds:.1f}" + (f" ({row.sessions} sessions)" if row.sessions > len(row.seeds) else ""),
            _count(row.tokens_seen),
            _count(row.tokens_generated),
            f"{row.cost:.2g}",
            f"{_share(row.refused)} / {_share(row.over_refused)}",
            "yes" if row.name in front else "",
        )
        for row in rows
    ]


def markdown(rows: Sequence[TrialRow], front: Sequence[str]) -> str:
    """The table in Markdown."""
    lines = [HEADER, tuple("---" for _ in HEADER), *cells(rows, front)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _row(group: Sequence[Trial], params: CompareParams, confidence: float, resamples: int, seed: int) -> TrialRow:
    head = group[0]
    judges = [judge for judge in JUDGES if all(judge in trial.outcomes for trial in group)]
    costs = [trial.cost for trial in group]
    prices = [cost.price(params.price_cpu_hour, params.price_gpu_hour) for cost in costs]
    return TrialRow(
        name=head.variant,
        methods=head.methods,
        settings=head.settings,
        seeds=tuple(trial.seed for trial in group),
        win={judge: _win(group, judge, confidence, resamples, seed) for judge in judges},
        win_by_seed={
            judge: tuple(float(np.mean(list(trial.outcomes[judge].values()))) for trial in group) for judge in judges
        },
        accuracy=_envelope([look_up(trial.metrics, "preference.accuracy") for trial in group]),
        ece=_mean([look_up(trial.metrics, "calibration.ece") for trial in group]),
        kl=_envelope([look_up(trial.metrics, "divergence.kl_nats_per_token") for trial in group]),
        refused=_mean([look_up(trial.metrics, "safety.policy.refusal_accuracy.value") for trial in group]),
        over_refused=_mean([look_up(trial.metrics, "safety.policy.over_refusal.value") for trial in group]),
        agreement=_mean([look_up(trial.metrics, "gold.judge_agreement.value") for trial in group]),
        finished=_mean([look_up(trial.metrics, "text.policy.finished.value") for trial in group]),
        finished_reference=_mean([look_up(trial.metrics, "text.reference.finished.value") for trial in group]),
        wall_seconds=float(np.mean([cost.wall_seconds for cost in costs])),
        cpu_seconds=float(np.mean([cost.cpu_seconds for cost in costs])),
        sessions=sum(cost.sessions for cost in costs),
        tokens_seen=_mean([cost.tokens_seen for cost in costs]),
        tokens_generated=_mean([cost.tokens_generated for cost in costs]),
        cost=float(np.mean(prices)),
        readings=tuple(trial.readings for trial in group),
    )


def _win(group: Sequence[Trial], judge: str, confidence: float, resamples: int, seed: int) -> FigureInterval:
    (outcomes,) = shared_outcomes(group, judge).values()
    value, low, high = paired_bootstrap(outcomes.mean(axis=0), confidence, resamples, seed)
    return (
        FigureInterval(value, low, high) if math.isfinite(low) else FigureInterval(value, None, None)
    )  # one prompt has no spread


def _envelope(estimates: Sequence[Mapping[str, Any] | None]) -> FigureInterval:
    """Mean of estimates {"value", "low", "high"}; the interval reaches from the lowest end to the highest.

    Null if one of them was not measured, or has no interval.
    """
    known = [each or {} for each in estimates]
    lows, highs = ([each[end] for each in known if each.get(end) is not None] for end in ("low", "high"))
    whole = len(lows) == len(highs) == len(known)
    value = _mean([each.get("value") for each in known])
    return FigureInterval(value, min(lows), max(highs)) if whole else FigureInterval(value, None, None)


def _or(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def _mean(values: Sequence[float | None]) -> float | None:
    """Mean of values that are all there; None if one is missing."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _with_ends(interval: FigureInterval | None) -> str:
    if interval is None or interval.value is None:
        return "-"
    ends = "" if interval.low is None or interval.high is None else f" [{interval.low:.3f}, {interval.high:.3f}]"
    return f"{interval.value:.3f}{ends}"


def _count(value: float | None) -> str:
    return "not said" if value is None else f"{value:,.0f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
