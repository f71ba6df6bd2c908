"""Stage `reward`: train the reward model on the curated pairs and audit it on held-out ones."""

from __future__ import annotations

from data_contracts.artifact import write_json
from data_contracts.records import CuratedPair, load_jsonl
from tasks.rewards.params import RewardParams
from tasks.stage import Facts, Stage, StageContext


def train_reward(
    context: StageContext, *, seed: int, threads: int, reward: RewardParams, reference_trust_remote_code: bool
) -> Facts:
    """Write the reward model and its audit on the test split, which training never sees."""
    from tasks.rewards import bradley_terry
    from tasks.rewards.held_out import audit_held_out

    curated = context.dep("curated")
    facts = bradley_terry.train_reward(
        context.dep("init"),
        list(load_jsonl(curated / "train.jsonl", CuratedPair)),
        list(load_jsonl(curated / "validation.jsonl", CuratedPair)),
        reward,
        seed,
        threads,
        context.folder,
        context.work,
        context.progress,
        trust_remote_code=reference_trust_remote_code,
    )
    test = list(load_jsonl(curated / "test.jsonl", CuratedPair))
    audit = audit_held_out(context.folder, test, reward, trust_remote_code=reference_trust_remote_code)
    write_json(context.folder / "audit.json", audit)
    return {**facts, "audit": {name: audit[name] for name in ("passed", "reasons", "accuracy", "too_long")}}


STAGE = Stage(
    name="reward",
    title="Reward model",
    body=train_reward,
    deps={"init": "models/${reward.init}", "curated": "data/curated"},
    params=("seed", "threads", "reward", "reference.trust_remote_code"),
    out="models/reward",
    contract="reward_model",
    trains=True,
)
