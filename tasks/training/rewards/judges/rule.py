"""Rules as a judge: candidates are ordered by a weighted sum of rule terms, the same ones that rewards are made of."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from time import perf_counter

import orjson

from plumbline.data_contracts.errors import JudgeError, RewardError
from plumbline.tasks.models.judging import Completions, Prompt, Verdicts
from plumbline.tasks.training.rewards.judges.pairwise import from_scores
from plumbline.tasks.training.rewards.mixture import Mixture


@dataclass(frozen=True, slots=True)
class RuleJudge:
    """`tasks.models.judging.Judge` by the total of `rules`; with `temperature` null it only orders.

    A judge sees texts, not the tokens that were drawn: terms are given no completion ids.
    """

    rules: Mixture
    temperature: float | None = None
    noise: float | None = None

    @property
    def name(self) -> str:
        """As in params."""
        return "rule"

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the rules' digest and the temperature."""
        return hashlib.sha256(orjson.dumps([self.name, self.rules.digest, self.temperature])).hexdigest()

    def judge(self, prompts: Sequence[Prompt], groups: Sequence[Sequence[str]]) -> Verdicts:
        """Judge G groups. Counts also the rows in which a stated fallback stood in, by "term: reason".

        Raises `JudgeError` for a rule that gave what no stated fallback covers.
        """
        start = perf_counter()
        texts = [text for group in groups for text in group]
        repeated = [prompt for prompt, group in zip(prompts, groups, strict=True) for _ in group]
        answers = Completions(repeated, texts, [()] * len(texts), [True] * len(texts))
        try:
            scored = self.rules.score(answers)
        except RewardError as error:
            raise JudgeError(f"judge rule: {error}") from error
        ends = accumulate(len(group) for group in groups)
        judgements = [
            from_scores(scored.total[end - len(group) : end], self.temperature)
            for group, end in zip(groups, ends, strict=True)
        ]
        counts = {"requests": len(groups), "unusable": 0, "seconds": perf_counter() - start}
        return Verdicts(judgements, counts | dict(scored.fallbacks))
