"""Stage `evaluate`: measure the policy against π_ref on the test split, and draw the plots."""

from __future__ import annotations

from pathlib import Path

import orjson

from plumbline.data_contracts.artifact import read_artifact
from plumbline.data_contracts.records import CuratedPair, load_jsonl
from plumbline.tasks.params.evaluation import EvaluationParams
from plumbline.tasks.pipeline.stage import Facts, Stage, StageContext


def evaluate_policy(
    context: StageContext, *, seed: int, threads: int, evaluation: EvaluationParams, reference_trust_remote_code: bool
) -> Facts:
    """Write metrics, samples and plots. The held-out judge judges, or else the reward model.

    The gold reward, where the world has one, is known only here. Pairs that the chat template refuses are set aside
    and counted; how many may be was decided before training.
    """
    from plumbline.tasks.data.sample_world import gold
    from plumbline.tasks.evaluation.measures.endings import warnings_of
    from plumbline.tasks.evaluation.measures.evaluate import evaluate
    from plumbline.tasks.evaluation.measures.gold import Gold
    from plumbline.tasks.models.completion_lengths import settle_lengths
    from plumbline.tasks.models.loading import load_tokenizer
    from plumbline.tasks.models.renderable import sift_splits
    from plumbline.tasks.training.rewards.held_out import choose_judge
    from plumbline.tasks.training.rewards.scoring import RewardModel

    evaluation = settle_lengths(
        evaluation,
        context.deps.get("lengths"),
        context.dep("reference"),
        trust_remote_code=reference_trust_remote_code,
    )
    known = read_artifact(context.dep("world")).facts["enabled"]
    reward = context.dep("reward")
    held_out_judge, judging = choose_judge(reward)
    judge = RewardModel.load(judging, trust_remote_code=reference_trust_remote_code)
    tuned = read_artifact(context.dep("policy")).facts
    curves = {name: context.dep(name) / "training.jsonl" for name in ("base", "reference", "reward", "policy")}
    test = list(load_jsonl(context.dep("curated") / "test.jsonl", CuratedPair))
    tokenizer = load_tokenizer(context.dep("policy"), trust_remote_code=reference_trust_remote_code)
    kept, sifted = sift_splits(tokenizer, {"test": test}, 1.0)
    metrics = evaluate(
        context.dep("policy"),
        context.dep("reference"),
        kept["test"],
        judge.score,
        Gold(gold.gold_reward, gold.should_refuse, gold.is_refusal, gold.knows) if known else None,
        evaluation,
        seed=seed,
        threads=threads,
        folder=context.folder,
        progress=context.progress,
        beta=tuned["implied_beta"],
        curves={name: path for name, path in curves.items() if path.is_file()},
        training=tuned["settings"],
        reward_audit=_audit(reward),
        judge_audit=_audit(judging) if judging != reward else None,
        held_out_judge=held_out_judge,
        judge_length=judge.max_length,
        trust_remote_code=reference_trust_remote_code,
    )
    warnings = warnings_of(metrics, evaluation)
    return {"metrics": metrics, "max_new_tokens": evaluation.max_new_tokens, "warnings": warnings, **sifted}


def _audit(reward: Path) -> Facts:
    audit: Facts = orjson.loads((reward / "audit.json").read_bytes())
    return audit


STAGE = Stage(
    name="evaluate",
    title="Evaluate",
    body=evaluate_policy,
    deps={
        "policy": "models/policy",
        "reference": "models/reference",
        "lengths": "reports/lengths",
        "base": "models/base",
        "reward": "models/reward",
        "curated": "data/curated",
        "world": "data/world",
    },
    params=("seed", "threads", "evaluation", "reference.trust_remote_code"),
    out="reports/evaluation",
    contract="evaluation",
    trains=True,
)
