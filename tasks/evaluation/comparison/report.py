"""The report of a comparison: `comparison.json`, `comparison.md` and plots, from trials and what they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from plumbline.data_contracts.artifact import write_bytes, write_json
from plumbline.data_contracts.records import CuratedPair
from plumbline.tasks.evaluation.comparison import plots
from plumbline.tasks.evaluation.comparison.budget import Spread
from plumbline.tasks.evaluation.comparison.recommend import (
    Contender,
    Facts,
    FigureInterval,
    Recommendation,
    VariantRefusal,
    explores,
    recommend,
)
from plumbline.tasks.evaluation.comparison.table import (
    Trial,
    TrialRow,
    as_json,
    headline_judge,
    markdown,
    pareto_front,
    rows_of,
    shared_outcomes,
    time_ratios,
)
from plumbline.tasks.params.comparison import CompareParams

Gate = Callable[[Mapping[str, Any]], Sequence[VariantRefusal]]
"""The checks of a registration's gate that say no, for a trial's metrics."""


@dataclass(frozen=True, slots=True)
class Shared:
    """The inputs that all variants share: training pairs, the reward model's audit, digests, the run's seed.

    `reward_seconds`: how long the reward model trained, on the wall clock; None if no run tells.
    """

    train: Sequence[CuratedPair]
    reward_audit: Mapping[str, Any] | None
    inputs: Mapping[str, str]
    seed: int
    confidence: float
    resamples: int
    reward_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """The findings of a comparison. `failures`: label of a trial → why it ended without a policy."""

    rows: tuple[TrialRow, ...]
    judge: str
    front: tuple[str, ...]
    recommendation: Recommendation
    facts: Mapping[str, Any]


def compare(
    trials: Sequence[Trial], failures: Mapping[str, str], shared: Shared, params: CompareParams, gate: Gate
) -> Comparison:
    """Sum up trials, find the Pareto front and recommend one that `gate` would let pass."""
    rows = rows_of(trials, params, confidence=shared.confidence, resamples=shared.resamples, seed=shared.seed)
    judge = headline_judge(trials)
    front = pareto_front(rows, judge)
    found = recommend(_facts(rows, trials, judge, shared, params, gate), params.recommend)
    facts = {
        "judge": judge,
        "variants": [as_json(row) for row in rows],
        "pareto_front": front,
        "recommendation": asdict(found),
        "time_ratio": time_ratios(rows, shared.reward_seconds),
        "failures": dict(failures),
        "warnings": {f"{trial.variant}-seed{trial.seed}": list(trial.warnings) for trial in trials if trial.warnings},
        "budget": _budget(rows, shared, params),
        "inputs": dict(shared.inputs),
    }
    return Comparison(tuple(rows), judge, tuple(front), found, facts)


def write_report(comparison: Comparison, trials: Sequence[Trial], params: CompareParams, folder: Path) -> None:
    """Write `comparison.json`, `comparison.md` and `plots/*.png` into `folder`."""
    write_json(folder / "comparison.json", comparison.facts)
    write_bytes(folder / "comparison.md", _text(comparison).encode())
    rows, plot = comparison.rows, folder / "plots"
    most_kl = params.recommend.max_kl_nats_per_token
    plots.win_rate_against_kl(rows, comparison.judge, comparison.front, most_kl, plot / "win_rate_kl.png")
    bins: dict[str, Any] = {}
    for trial in trials:
        bins.setdefault(trial.variant, (trial.metrics.get("calibration") or {}).get("bins") or ())
    plots.reliability(bins, rows, plot / "reliability.png")
    plots.training_time(rows, plot / "training_time.png")
    plots.win_rate_over_time(rows, most_kl, plot / "win_rate_time.png")


def verdict(comparison: Comparison) -> str:
    """The recommendation and its reasons as text, a line each."""
    found = comparison.recommendation
    named = f"{found.variant} ({' → '.join(found.methods)})" if found.variant else "keep π_ref: no variant is admitted"
    left_out = [f"Left out: {', '.join(found.left_out)}"] if found.left_out else []
    lines = [f"Recommended: {named}", *left_out, *(f"  {reason.rule}: {reason.text}" for reason in found.reasons)]
    warned = [f"Warning: {label}: {text}" for label, texts in comparison.facts["warnings"].items() for text in texts]
    return "\n".join([*lines, *_ratio_lines(comparison), *warned, *_failure_lines(comparison)])


def _facts(
    rows: Sequence[TrialRow], trials: Sequence[Trial], judge: str, shared: Shared, params: CompareParams, gate: Gate
) -> Facts:
    outcomes = shared_outcomes(trials, judge)
    responses: dict[Any, set[str]] = {}
    for pair in shared.train:
        responses.setdefault(pair.prompt, set()).update((pair.chosen, pair.rejected))
    audit = shared.reward_audit or {}
    accuracy = audit.get("accuracy") or {}
    return Facts(
        metric=judge,
        pairs=len(shared.train),
        prompts=len(responses),
        listed_prompts=sum(len(texts) >= 3 for texts in responses.values()),
        reward_passed=bool(audit.get("passed")),
        reward_accuracy=FigureInterval(accuracy.get("value"), accuracy.get("low"), accuracy.get("high")),
        contenders=[
            Contender(
                row.name,
                row.methods,
                row.win[judge],
                row.kl,
                row.cpu_seconds,
                row.cost,
                outcomes[row.name],
                row.agreement,
                row.readings,
                _refused(row.name, trials, gate),
            )
            for row in rows
        ],
        confidence=shared.confidence,
        budget_cpu_seconds=params.budget_cpu_seconds,
    )


def _refused(name: str, trials: Sequence[Trial], gate: Gate) -> tuple[VariantRefusal, ...]:
    """The checks of the gate that say no under any seed of a variant; the first seed's words for each check."""
    found: dict[str, VariantRefusal] = {}
    for trial in trials:
        for said in gate(trial.metrics) if trial.variant == name else ():
            found.setdefault(said.name, said)
    return tuple(found.values())


def _budget(rows: Sequence[TrialRow], shared: Shared, params: CompareParams) -> dict[str, Any]:
    """The budget that the variants had in common, and how far their times to train agree."""
    seconds = {row.name: row.cpu_seconds for row in rows}
    least, most = min(seconds, key=lambda name: seconds[name]), max(seconds, key=lambda name: seconds[name])
    spread = Spread(seconds[least], seconds[most], params.recommend.same_budget)
    limit = params.budget_cpu_seconds
    spent = f"{spread.factor:.2f}x ({least} {spread.least:.1f} to {most} {spread.most:.1f} CPU s of training)"
    if spread.equal:
        told = f"equal budgets of training within {spent}"
    else:
        told = (
            f"unequal budgets of training: {spent}; a lead at more than {spread.within:g}x the seconds counts only "
            f"where evaluations during training show it at the cheaper one's"
        )
    common = (
        f"the same {len(shared.train):,} training pairs, π_ref, reward model, test prompts and random draws of the "
        f"evaluation for all; {told}" + ("" if limit is None else f"; at most {limit:g} CPU s are recommended")
    )
    return {"text": common, "equal": spread.equal, **asdict(spread), "factor": spread.factor, "limit": limit}


def _text(comparison: Comparison) -> str:
    table = markdown(comparison.rows, comparison.front)
    note = f"Budget: {comparison.facts['budget']['text']}. Intervals and tests: over prompts, by {comparison.judge}."
    return f"# Comparison\n\n{table}\n{note}\n\n```\n{verdict(comparison)}\n```\n"


def _ratio_lines(comparison: Comparison) -> list[str]:
    ratio = comparison.facts["time_ratio"]
    if ratio is None:
        return []
    low, high = ratio["literature_ppo"]
    return [
        f"Training time of {methods} over {ratio['over']}: {found['wall']:.2f}x wall-clock, {found['cpu']:.2f}x CPU"
        + (f" (literature: {low:g} to {high:g}x)" if methods == "ppo" else "")
        + _with_reward_model(methods, found, ratio["reward_model_seconds"])
        for methods, found in ratio["ratios"].items()
    ]


def _with_reward_model(methods: str, found: Mapping[str, float], seconds: float | None) -> str:
    if not explores(methods.split("+")):
        return ""
    if seconds is None:
        return "; the reward model's own training is not known, and not in it"
    return f"; {found['wall_with_reward_model']:.2f}x wall-clock with the reward model's {seconds:.1f} s"


def _failure_lines(comparison: Comparison) -> list[str]:
    return [f"Failed: {label}: {why}" for label, why in comparison.facts["failures"].items()]
