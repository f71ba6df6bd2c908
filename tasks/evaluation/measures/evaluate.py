"""Evaluation of a policy against its reference on the test split.

1. Log-probabilities of both responses of every test pair under both policies: held-out preference
   accuracy and calibration of the implied probabilities.
2. One completion of each policy for every distinct test prompt.
3. Scores of both completions by the judge, and by the gold reward on prompts of a world that has one: win rates.
4. Divergence of the policy on its own completions; surface of the texts, and how they ended; refusals.

What does not fit the context is set aside and counted, never cut. What this does not cover: judges that
compare two responses at once (`win_rate.Compare` is their place) and metrics of a task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plumbline.data_contracts.artifact import write_json
from plumbline.data_contracts.errors import StageError
from plumbline.data_contracts.progress import Progress, silent
from plumbline.data_contracts.records import CuratedPair
from plumbline.tasks.evaluation.measures import on_policy_plots, plots
from plumbline.tasks.evaluation.measures.calibration import calibration
from plumbline.tasks.evaluation.measures.divergence import divergence
from plumbline.tasks.evaluation.measures.endings import describe_endings
from plumbline.tasks.evaluation.measures.estimate import mean
from plumbline.tasks.evaluation.measures.gold import Gold
from plumbline.tasks.evaluation.measures.preference import preference_accuracy
from plumbline.tasks.evaluation.measures.safety import refusals
from plumbline.tasks.evaluation.measures.samples import (
    Samples,
    Scores,
    choose_prompts,
    draw,
    only_judgeable,
    score_samples,
    write_samples,
)
from plumbline.tasks.evaluation.measures.subjects import Subjects, load_subjects, pair_logps
from plumbline.tasks.evaluation.measures.text import describe
from plumbline.tasks.evaluation.measures.win_rate import Pointwise, Score, win_rate
from plumbline.tasks.models.divergence import sequence_divergences
from plumbline.tasks.params.evaluation import EvaluationParams

PHASES = (
    "log-probabilities of the policy",
    "log-probabilities of the reference",
    "completions of the policy",
    "completions of the reference",
    "judging",
    "divergence",
    "plots",
)
_JUDGING, _DIVERGENCE, _PLOTS = 4, 5, 6
_PARTS = 100  # steps that a phase is shown in


def evaluate(
    policy: Path,
    reference: Path,
    test: Sequence[CuratedPair],
    score: Score,
    gold: Gold | None,
    params: EvaluationParams,
    seed: int,
    threads: int,
    folder: Path,
    progress: Progress = silent,
    *,
    beta: float | None,
    curves: Mapping[str, Path] | None = None,
    training: Mapping[str, Any] | None = None,
    reward_audit: Mapping[str, Any] | None = None,
    judge_audit: Mapping[str, Any] | None = None,
    held_out_judge: str | None = None,
    judge_length: int | None = None,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Evaluate and write `metrics.json`, `samples.jsonl` and `plots/*.png` into `folder`; return the metrics.

    `score(prompts, responses)` is the judge, a reward model. `beta` is that of the policy's objective: the implied
    probability of a pair is sigmoid(beta·margin); None if the method implies none. `curves` maps stage names to
    their `training.jsonl`; that of `policy` is plotted in full where it sampled, with the KL target of `training`, the
    settings in the policy's manifest. `reward_audit`, and `judge_audit` where the judge is another model, go into the
    metrics for the gate, and `held_out_judge`, which of the two judged, for people. `judge_length` is the most tokens
    of prompt and response that the judge takes; None: as many as the policies. The same inputs give the same bytes.

    Raises `StageError` on an empty test split, `ModelError` when the two checkpoints do not share a
    tokenizer, no prompt fits the context, or a score is not finite.
    """
    from plumbline.tasks.models.chat import split_by_context
    from plumbline.tasks.models.loading import seed_everything

    if not test:
        raise StageError("Expected preference pairs in the test split, found none. Raise the test share of curation.")
    seed_everything(seed, threads)
    watch = _Watch(progress)
    subjects = load_subjects(policy, reference, trust_remote_code=trust_remote_code)
    kept, too_long = split_by_context(test, subjects.tokenizer, subjects.context)
    judge_length = subjects.context if judge_length is None else judge_length
    chosen = choose_prompts(test, subjects, params, judge_length)
    logps = pair_logps(kept, subjects, params, watch.start)
    drawn = draw(chosen, subjects, params, seed, [watch.phase(2), watch.phase(3)])
    samples = only_judgeable(drawn, subjects, judge_length)
    unjudged = len(drawn.prompts) - len(samples.prompts)
    watch.start(_JUDGING)
    scores = _score(samples, score, gold)
    metrics: dict[str, Any] = {
        "counts": chosen.counts
        | {"prompts_not_judged": unjudged, "pairs": len(test), "pairs_over_context": len(too_long)},
        "preference": preference_accuracy(logps, params, _gold_margins(kept, gold)),
        "calibration": calibration(logps.margins(), beta, params),
        "win_rate": _win_rates(samples, scores, params, seed),
        "judge": _rewards(scores["judge"], params, seed),
        "gold": _gold_rewards(scores, params, seed),
        "text": {
            "policy": describe(samples.policy, params, seed),
            "reference": describe(samples.reference, params, seed),
        },
        "endings": describe_endings(samples, scores["judge"], params, seed),
        "safety": _refusals(samples, scores, gold, params),
        "reward_audit": None if reward_audit is None else dict(reward_audit),
        "judge_audit": None if judge_audit is None else dict(judge_audit),
        "held_out_judge": held_out_judge,
    }
    watch.start(_DIVERGENCE)
    metrics["divergence"] = _diverge(samples, subjects, params, seed)
    watch.start(_PLOTS)
    write_json(folder / "metrics.json", metrics)
    write_samples(folder / "samples.jsonl", samples, scores)
    _plot(folder / "plots", metrics, scores, curves or {}, training or {})
    watch.end()
    return metrics


class _Watch:
    """Progress over `PHASES`."""

    def __init__(self, progress: Progress):
        self._progress = progress

    def start(self, phase: int) -> None:
        self._progress(phase * _PARTS, len(PHASES) * _PARTS, PHASES[phase])

    def phase(self, number: int) -> Progress:
        """A watcher of the steps inside one phase."""

        def within(done: int, total: int, _note: str) -> None:
            at = number * _PARTS + _PARTS * done // max(total, 1)
            self._progress(at, len(PHASES) * _PARTS, PHASES[number])

        return within

    def end(self) -> None:
        self._progress(len(PHASES) * _PARTS, len(PHASES) * _PARTS, "done")


def _score(samples: Samples, score: Score, gold: Gold | None) -> dict[str, Scores]:
    scores = {"judge": score_samples(Pointwise(score, "the reward model"), samples)}
    known = [row for row, prompt in enumerate(samples.prompts) if gold is not None and gold.knows(prompt)]
    if gold is not None and known:
        scores["gold"] = score_samples(Pointwise(gold.rewards, "the gold reward"), samples, known)
    return scores


def _gold_margins(pairs: Sequence[CuratedPair], gold: Gold | None) -> list[float] | None:
    """Gold reward of chosen less rejected; 0, as where the truth sees a tie, for prompts that it does not know."""
    if gold is None:
        return None
    return [
        gold.reward(pair.prompt, pair.chosen) - gold.reward(pair.prompt, pair.rejected)
        if gold.knows(pair.prompt)
        else 0.0
        for pair in pairs
    ]


def _win_rates(samples: Samples, scores: Mapping[str, Scores], params: EvaluationParams, seed: int) -> dict[str, Any]:
    difference = samples.length_difference()
    found = {name: win_rate(score.judged, difference[score.rows], params, seed) for name, score in scores.items()}
    return {"judge": found["judge"], "gold": found.get("gold")}


def _rewards(scores: Scores, params: EvaluationParams, seed: int) -> dict[str, Any]:
    return {
        "policy_reward": mean(scores.policy, params, seed),
        "reference_reward": mean(scores.reference, params, seed),
        "reward_difference": mean(scores.policy - scores.reference, params, seed),
    }


def _gold_rewards(scores: Mapping[str, Scores], params: EvaluationParams, seed: int) -> dict[str, Any] | None:
    """Gold rewards, and how often the judge takes the side of the gold reward where neither sees a tie."""
    if "gold" not in scores:
        return None
    gold = scores["gold"]
    sides = (scores["judge"].judged.outcomes[gold.rows] - 0.5) * (gold.judged.outcomes - 0.5)
    agreement = mean(sides[sides != 0] > 0, params, seed)
    return _rewards(gold, params, seed) | {"judge_agreement": agreement}


def _refusals(
    samples: Samples, scores: Mapping[str, Scores], gold: Gold | None, params: EvaluationParams
) -> dict[str, Any] | None:
    if gold is None or "gold" not in scores:
        return None
    known = samples.only(scores["gold"].rows)
    policy, reference = known.texts()
    return {
        "policy": refusals(known.prompts, policy, gold, params),
        "reference": refusals(known.prompts, reference, gold, params),
    }


def _diverge(samples: Samples, subjects: Subjects, params: EvaluationParams, seed: int) -> dict[str, Any]:
    from plumbline.tasks.models.chat import encode_prompts

    heads = encode_prompts(subjects.tokenizer, samples.prompts)
    pairs = [(head, completion.token_ids) for head, completion in zip(heads, samples.policy, strict=True)]
    sequences = sequence_divergences(
        *subjects.each(), pairs, batch_size=params.batch_size, temperature=params.temperature
    )
    return divergence(sequences, params, seed)


def _plot(
    folder: Path,
    metrics: Mapping[str, Any],
    scores: Mapping[str, Scores],
    curves: Mapping[str, Path],
    training: Mapping[str, Any],
) -> None:
    if curves:
        plots.training_curves(curves, folder / "training_curves.png")
    if "policy" in curves:
        on_policy_plots.draw(curves["policy"], training, folder)
    titles = {"judge": "Reward model on test prompts", "gold": "Gold reward on test prompts"}
    panels = {titles[name]: (score.policy, score.reference) for name, score in scores.items()}
    plots.reward_distribution(panels, folder / "reward_distribution.png")
    calibrated = metrics["calibration"]
    if calibrated["beta"] is not None:
        plots.reliability_diagram(calibrated["bins"], calibrated["ece"], folder / "reliability.png")
