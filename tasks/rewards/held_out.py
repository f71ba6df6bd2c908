"""Audit of a saved reward model on pairs it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_contracts.records import CuratedPair
from tasks.models.chat import split_by_context
from tasks.rewards.audit import audit_reward, score_pairs
from tasks.rewards.params import RewardParams
from tasks.rewards.scoring import RewardModel


def audit_held_out(
    folder: Path, pairs: Sequence[CuratedPair], params: RewardParams, *, trust_remote_code: bool = False
) -> dict[str, Any]:
    """Score held-out pairs and audit the scores; pairs beyond the model's length are counted as `too_long`."""
    model = RewardModel.load(folder, batch_size=params.eval_batch_size, trust_remote_code=trust_remote_code)
    kept, too_long = split_by_context(pairs, model.tokenizer, model.max_length)
    prompts = [pair.prompt for pair in kept]
    chosen, rejected = [pair.chosen for pair in kept], [pair.rejected for pair in kept]
    rewards = model.score(prompts, chosen), model.score(prompts, rejected)
    scored = score_pairs(*rewards, chosen, rejected, [pair.cluster for pair in kept])
    return {**audit_reward(scored, params.audit), "too_long": len(too_long)}
