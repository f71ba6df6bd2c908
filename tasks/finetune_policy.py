"""Stage `finetune`: turn π_ref into the policy, by the methods that params name, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from data_contracts.artifact import read_artifact, write_json
from data_contracts.records import CuratedPair, load_jsonl
from tasks.finetuning.params import FinetuneParams
from tasks.rewards.judge_params import JudgeParams
from tasks.rewards.mixture_params import MixtureParams
from tasks.stage import Facts, Stage, StageContext

if TYPE_CHECKING:
    from tasks.finetuning.methods import FinetuneInputs
    from tasks.rewards.scoring import RewardModel

JUDGE_REPORT = "judge.json"
"""Beside the policy: how far the judge that ranked candidates agreed with people."""


def finetune_policy(
    context: StageContext,
    *,
    seed: int,
    threads: int,
    finetune: FinetuneParams,
    mixture: MixtureParams,
    judge: JudgeParams,
    reference_trust_remote_code: bool,
) -> Facts:
    """Write the fine-tuned policy; the reward model judges validation samples for early stopping."""
    from tasks.finetuning import stack
    from tasks.finetuning.methods import FinetuneInputs
    from tasks.rewards.scoring import RewardModel

    curated, reward = context.dep("curated"), context.dep("reward")
    model = RewardModel.load(reward, trust_remote_code=reference_trust_remote_code)
    inputs = FinetuneInputs(
        start=context.dep("reference"),
        reference=context.dep("reference"),
        train=list(load_jsonl(curated / "train.jsonl", CuratedPair)),
        validation=list(load_jsonl(curated / "validation.jsonl", CuratedPair)),
        judge=model.score,
        seed=seed,
        threads=threads,
        folder=context.folder,
        work=context.work,
        progress=context.progress,
        trust_remote_code=reference_trust_remote_code,
        judge_digest=read_artifact(reward).digest,
        judge_length=model.max_length,
        reward_model=reward,
    )
    return stack.run(_with_rewards(inputs, finetune.methods, mixture, judge, model), finetune)


def _with_rewards(
    inputs: FinetuneInputs, methods: Sequence[str], mixture: MixtureParams, judge: JudgeParams, model: RewardModel
) -> FinetuneInputs:
    """The inputs with what on-policy methods learn from; a judge that disagrees with people stops the run here."""
    from dataclasses import replace

    from tasks.rewards.gains import build_gains
    from tasks.rewards.judges.build import JudgeMeans, build_judge
    from tasks.rewards.judges.reliability import Measured, calibrate, require_reliable
    from tasks.rewards.mixture import build_mixture

    if {"ppo", "grpo"} & set(methods):
        inputs = replace(inputs, reward=build_mixture(mixture, model))
    if "grpo" in methods:
        means = JudgeMeans(model, inputs.work / "judge_answers", inputs.trust_remote_code)
        unmeasured = build_judge(judge, means)
        report = calibrate(unmeasured, inputs.validation, judge.calibration_pairs, inputs.seed)
        write_json(inputs.folder / JUDGE_REPORT, report)
        require_reliable(report, judge)
        noise = report["noise"]["value"]
        inputs = replace(inputs, ranker=Measured(unmeasured, noise), gains=build_gains(judge.gains, noise))
    return inputs


STAGE = Stage(
    name="finetune",
    title="Fine-tune policy",
    body=finetune_policy,
    deps={"reference": "models/reference", "reward": "models/reward", "curated": "data/curated"},
    params=("seed", "threads", "finetune", "mixture", "judge", "reference.trust_remote_code"),
    out="models/policy",
    contract="causal_lm",
    trains=True,
)
