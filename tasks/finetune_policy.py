"""Stage `finetune`: turn π_ref into the policy, by the method that params name."""

from __future__ import annotations

from data_contracts.artifact import read_artifact
from data_contracts.records import CuratedPair, load_jsonl
from tasks.finetuning.params import FinetuneParams
from tasks.stage import Facts, Stage, StageContext


def finetune_policy(
    context: StageContext, *, seed: int, threads: int, finetune: FinetuneParams, reference_trust_remote_code: bool
) -> Facts:
    """Write the fine-tuned policy; the reward model judges validation samples for early stopping."""
    from tasks.finetuning.methods import METHODS, FinetuneInputs
    from tasks.rewards.scoring import RewardModel

    curated, reward = context.dep("curated"), context.dep("reward")
    judge = RewardModel.load(reward, trust_remote_code=reference_trust_remote_code)
    inputs = FinetuneInputs(
        start=context.dep("reference"),
        reference=context.dep("reference"),
        train=list(load_jsonl(curated / "train.jsonl", CuratedPair)),
        validation=list(load_jsonl(curated / "validation.jsonl", CuratedPair)),
        judge=judge.score,
        seed=seed,
        threads=threads,
        folder=context.folder,
        work=context.work,
        progress=context.progress,
        trust_remote_code=reference_trust_remote_code,
        judge_digest=read_artifact(reward).digest,
        judge_length=judge.max_length,
        reward_model=reward,
    )
    return METHODS[finetune.methods[0]].run(inputs, finetune)


STAGE = Stage(
    name="finetune",
    title="Fine-tune policy",
    body=finetune_policy,
    deps={"reference": "models/reference", "reward": "models/reward", "curated": "data/curated"},
    params=("seed", "threads", "finetune", "reference.trust_remote_code"),
    out="models/policy",
    contract="causal_lm",
    trains=True,
)
