"""Stage `finetune`: turn π_ref into the policy, by the methods that params name, one after the other."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from plumbline.data_contracts.artifact import write_json
from plumbline.data_contracts.records import CuratedPair, UnpairedResponse, load_jsonl
from plumbline.tasks.params.finetuning import FinetuneParams
from plumbline.tasks.params.judge import JudgeParams
from plumbline.tasks.params.mixture import MixtureParams
from plumbline.tasks.pipeline.stage import Facts, Stage, StageContext

if TYPE_CHECKING:
    from pathlib import Path

    from plumbline.tasks.training.finetuning.methods import FinetuneInputs, Needs
    from plumbline.tasks.training.rewards.scoring import RewardModel

UNPAIRED = "unpaired.jsonl"
"""Single judged responses in the curated set; absent where no feedback has any."""

JUDGE_REPORT = "judge.json"
"""Beside the policy: how far the judge that ranked candidates agreed with people."""

_RANKING = ("judge", "kappa", "noise", "rubric")

logger = logging.getLogger(__name__)


def finetune_policy(
    context: StageContext,
    *,
    seed: int,
    threads: int,
    finetune: FinetuneParams,
    mixture: MixtureParams,
    judge: JudgeParams,
    reference_trust_remote_code: bool,
    reference_refused_threshold: float,
) -> Facts:
    """Write the fine-tuned policy; the held-out judge, or else the reward model, chooses the best checkpoint.

    Records that the chat template refuses are set aside and counted.
    """
    from plumbline.tasks.models.completion_lengths import settle_lengths
    from plumbline.tasks.models.curve import read_curve
    from plumbline.tasks.models.loading import load_tokenizer
    from plumbline.tasks.models.renderable import sift_splits
    from plumbline.tasks.training.finetuning import stack
    from plumbline.tasks.training.finetuning.methods import FinetuneInputs, needs_of
    from plumbline.tasks.training.rewards.held_out import choose_judge
    from plumbline.tasks.training.rewards.scoring import RewardModel

    curated, reward = context.dep("curated"), context.dep("reward")
    finetune = settle_lengths(
        finetune,
        context.deps.get("lengths"),
        context.dep("reference"),
        trust_remote_code=reference_trust_remote_code,
    )
    name, folder = choose_judge(reward)
    needs = needs_of(finetune)
    optimised = name == "reward_model" and learns_from_reward_model(needs, mixture, judge)
    unpaired, ignored = unpaired_responses(curated / UNPAIRED, needs)
    given = {name: list(load_jsonl(curated / f"{name}.jsonl", CuratedPair)) for name in ("train", "validation")}
    tokenizer = load_tokenizer(context.dep("reference"), trust_remote_code=reference_trust_remote_code)
    kept, sifted = sift_splits(tokenizer, {**given, "unpaired": unpaired}, reference_refused_threshold)
    arbiter = RewardModel.load(folder, trust_remote_code=reference_trust_remote_code)
    inputs = FinetuneInputs(
        start=context.dep("reference"),
        reference=context.dep("reference"),
        train=kept["train"],
        validation=kept["validation"],
        judge=arbiter.score_fitting,
        seed=seed,
        threads=threads,
        folder=context.folder,
        work=context.work,
        progress=context.progress,
        trust_remote_code=reference_trust_remote_code,
        judge_digest=arbiter.digest,
        judge_length=arbiter.max_length,
        reward_model=reward,
        unpaired=kept["unpaired"],
        refused_threshold=reference_refused_threshold,
    )
    taught: Facts = {}
    if needs.mixture or needs.ranker:
        trained = (
            arbiter if folder == reward else RewardModel.load(reward, trust_remote_code=reference_trust_remote_code)
        )
        inputs, taught = _with_rewards(inputs, needs, mixture, judge, trained)
    facts = stack.run(inputs, finetune)
    facts = {**sifted, **facts, **taught, **ignored, "held_out_judge": name, "optimised_against_judge": optimised}
    return {**facts, "warnings": training_warnings(facts, read_curve(context.folder))}


def training_warnings(facts: Facts, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Warnings beside the result: no judge of its own, responses nobody learns from, and the signs."""
    from plumbline.tasks.training.finetuning.signs import signs_of

    found, methods = signs_of(facts, rows), facts["method"]
    if facts["optimised_against_judge"]:
        found.insert(
            0,
            f"There is no independent judge: {methods} is optimised against the reward model, and the same model "
            f"chooses the best checkpoint and reports win rates, which then rise with its errors. Set "
            f"reward.held_out_share (such as 0.5) for a held-out judge.",
        )
    if "unpaired_ignored" in facts:
        found.append(
            f"{facts['unpaired_ignored']} single responses ({UNPAIRED}) are not learned from: only kto takes them, and "
            f"finetune.methods is {methods}."
        )
    for text in found:
        logger.warning("%s", text)
    return found


def unpaired_responses(file: Path, needs: Needs) -> tuple[list[UnpairedResponse], Facts]:
    """The single responses that a method learns from, or, as a fact, how many there are that none does."""
    if not file.is_file():
        return [], {}
    found = list(load_jsonl(file, UnpairedResponse))
    if needs.unpaired or not found:
        return found, {}
    return [], {"unpaired_ignored": len(found)}


def learns_from_reward_model(needs: Needs, mixture: MixtureParams, judge: JudgeParams) -> bool:
    """True if a method is optimised against the reward model of this run, as a term of its reward or as its judge."""
    in_mixture = any(term.kind == "reward_model" and term.weight != 0 for term in mixture.terms)
    ranks = judge.kind == "reward_model" and judge.reward_model.path is None
    return (needs.mixture and in_mixture) or (needs.ranker and ranks)


def _with_rewards(
    inputs: FinetuneInputs, needs: Needs, mixture: MixtureParams, judge: JudgeParams, model: RewardModel
) -> tuple[FinetuneInputs, Facts]:
    """The inputs with what on-policy methods learn from, and facts of it.

    A judge that disagrees with people stops the run here.
    """
    from dataclasses import replace

    from plumbline.tasks.training.rewards.gains import build_gains
    from plumbline.tasks.training.rewards.judges.build import JudgeMeans, build_judge
    from plumbline.tasks.training.rewards.judges.reliability import MeasuredJudge, calibrate, require_reliable
    from plumbline.tasks.training.rewards.mixture import build_mixture

    facts: Facts = {}
    if needs.mixture:
        inputs = replace(inputs, reward=build_mixture(mixture, model))
        facts["reward_terms"] = [{"name": term.title, "weight": term.weight} for term in mixture.terms]
    if needs.ranker:
        means = JudgeMeans(model, inputs.work / "judge_answers", inputs.trust_remote_code)
        unmeasured = build_judge(judge, means)
        report = calibrate(unmeasured, inputs.validation, judge.calibration_pairs, inputs.seed)
        write_json(inputs.folder / JUDGE_REPORT, report)
        require_reliable(report, judge)
        noise = report["noise"]["value"]
        inputs = replace(inputs, ranker=MeasuredJudge(unmeasured, noise), gains=build_gains(judge.gains, noise))
        facts["ranking"] = {name: report[name] for name in _RANKING if name in report} | {"gains": judge.gains.kind}
    return inputs, facts


STAGE = Stage(
    name="finetune",
    title="Fine-tune policy",
    body=finetune_policy,
    deps={
        "reference": "models/reference",
        "lengths": "reports/lengths",
        "reward": "models/reward",
        "curated": "data/curated",
    },
    params=(
        "seed",
        "threads",
        "finetune",
        "mixture",
        "judge",
        "reference.trust_remote_code",
        "reference.refused_threshold",
    ),
    out="models/policy",
    contract="causal_lm",
    trains=True,
)
