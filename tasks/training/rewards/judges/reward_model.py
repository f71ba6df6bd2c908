"""A reward model as a judge: candidates are ordered by reward, and win by the margin of their rewards."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from time import perf_counter

import orjson

from plumbline.data_contracts.errors import JudgeError
from plumbline.tasks.models.judging import Judgement, Prompt, Verdicts
from plumbline.tasks.training.rewards.judges.pairwise import from_scores
from plumbline.tasks.training.rewards.scoring import RewardModel


@dataclass(frozen=True, slots=True)
class RewardModelJudge:
    """`tasks.models.judging.Judge`: P(i beats j) = sigmoid((r_i - r_j) / temperature).

    A group with a candidate that is longer than the model takes has no judgement and is counted as `unusable`.
    """

    model: RewardModel
    temperature: float = 1.0
    noise: float | None = None

    @property
    def name(self) -> str:
        """As in params."""
        return "reward_model"

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the model's digest and the temperature."""
        return hashlib.sha256(orjson.dumps([self.name, self.model.digest, self.temperature])).hexdigest()

    def judge(self, prompts: Sequence[Prompt], groups: Sequence[Sequence[str]]) -> Verdicts:
        """Judge G groups in one scoring. Raises `JudgeError` if a reward is not finite."""
        start = perf_counter()
        repeated = [prompt for prompt, group in zip(prompts, groups, strict=True) for _ in group]
        scores = self.model.score_fitting(repeated, [text for group in groups for text in group])
        ends = list(accumulate(len(group) for group in groups))
        judgements = [self._one(scores[end - len(group) : end]) for group, end in zip(groups, ends, strict=True)]
        counts = {
            "requests": len(groups),
            "unusable": sum(judgement is None for judgement in judgements),
            "seconds": perf_counter() - start,
        }
        return Verdicts(judgements, counts)

    def _one(self, scores: Sequence[float | None]) -> Judgement | None:
        known = [score for score in scores if score is not None]
        if len(known) < len(scores):
            return None
        try:
            return from_scores(known, self.temperature)
        except JudgeError as error:
            raise JudgeError(f"judge reward_model: {error}") from error
