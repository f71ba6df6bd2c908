"""Stage `reward`: train the reward model on the curated pairs and audit it on held-out ones; its judge as well."""

from __future__ import annotations

from plumbline.data_contracts.records import CuratedPair, load_jsonl
from plumbline.tasks.params.reward import RewardParams
from plumbline.tasks.pipeline.stage import Facts, Stage, StageContext


def train_reward(
    context: StageContext,
    *,
    seed: int,
    threads: int,
    reward: RewardParams,
    reference_trust_remote_code: bool,
    reference_refused_threshold: float,
) -> Facts:
    """Write the reward model and its audit on the test split, which training never sees.

    With `reward.held_out_share` a second one, the held-out judge, stands in the folder `held_out`. Pairs that the chat
    template refuses are set aside and counted.
    """
    from plumbline.tasks.models.loading import load_tokenizer
    from plumbline.tasks.models.renderable import sift_splits
    from plumbline.tasks.training.rewards.held_out import RewardTraining, Splits, split_off, train_and_audit

    curated = context.dep("curated")
    given = {name: list(load_jsonl(curated / f"{name}.jsonl", CuratedPair)) for name in ("train", "validation", "test")}
    tokenizer = load_tokenizer(context.dep("init"), trust_remote_code=reference_trust_remote_code)
    splits, sifted = sift_splits(tokenizer, given, reference_refused_threshold)
    training, held_out = split_off(splits["train"], reward.held_out_share, seed)
    run = RewardTraining(
        init=context.dep("init"),
        folder=context.folder,
        work=context.work,
        seed=seed,
        threads=threads,
        progress=context.progress,
        trust_remote_code=reference_trust_remote_code,
    )
    facts = train_and_audit(run, Splits(training, held_out, splits["validation"], splits["test"]), reward)
    return {**facts, **sifted}


STAGE = Stage(
    name="reward",
    title="Reward model",
    body=train_reward,
    deps={"init": "models/${reward.init}", "curated": "data/curated"},
    params=("seed", "threads", "reward", "reference.trust_remote_code", "reference.refused_threshold"),
    out="models/reward",
    contract="reward_model",
    trains=True,
)
