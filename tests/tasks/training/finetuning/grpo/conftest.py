"""A judge that counts words and gains that are its ranks, in place of those that the verb injects."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from plumbline.data_contracts.records import CuratedPair
from plumbline.tasks.models.judging import Completions, Gains, Judgement, Prompt, Scored, TermValues, Verdicts
from plumbline.tasks.params.grpo import GrpoKlParams, GrpoParams
from plumbline.tasks.params.on_policy import ArenaParams
from plumbline.tasks.training.finetuning.methods import FinetuneInputs
from tests.support.world import in_world


@dataclass
class CountingJudge:
    """Ranks candidates by how often they say a word; gives no answer on prompts that `silent` names."""

    word: str = "yes"
    silent: Callable[[Prompt], bool] = lambda prompt: False
    seen: list[tuple[Sequence[Prompt], Sequence[Sequence[str]]]] = field(default_factory=list)
    name: str = "counting"
    digest: str = "counting-1"
    noise: float | None = 0.0

    def judge(self, prompts: Sequence[Prompt], groups: Sequence[Sequence[str]]) -> Verdicts:
        self.seen.append((prompts, groups))
        found = [
            None if self.silent(prompt) else self._order(group) for prompt, group in zip(prompts, groups, strict=True)
        ]
        return Verdicts(found, {"requests": len(groups), "unusable": sum(each is None for each in found)})

    def _order(self, group: Sequence[str]) -> Judgement:
        scores = np.array([text.split().count(self.word) for text in group], dtype=np.float64)
        wins = (scores[:, None] > scores) + 0.5 * (scores[:, None] == scores)
        return Judgement(ranks=len(group) - wins.sum(axis=1) + 0.5, wins=wins)


@dataclass
class RankGains:
    """Gain (K - rank) / (K - 1): 1 for the best, 0 for the last."""

    digest: str = "rank-gains"

    def __call__(self, judgements: Sequence[Judgement | None], candidates: int) -> Gains:
        values = np.full((len(judgements), candidates), np.nan)
        for row, judgement in enumerate(judgements):
            if judgement is not None:
                values[row] = (candidates - judgement.ranks) / (candidates - 1)
        return Gains(values, {})


@dataclass
class LengthReward:
    """Minus the number of words, shifted by the mean that it was calibrated on; counts what it scored."""

    mean: float = 0.0
    scored: int = 0
    digest: str = "length-1"
    max_length: int | None = None

    def calibrate(self, answers: Completions) -> None:
        self.mean = float(np.mean([len(text.split()) for text in answers.texts]))

    def score(self, answers: Completions) -> Scored:
        self.scored += len(answers.texts)
        raw = -np.array([len(text.split()) for text in answers.texts], dtype=np.float64)
        return Scored(raw + self.mean, {"length": TermValues(raw, raw + self.mean, 1.0)}, {})

    def state(self) -> dict[str, Any]:
        return {"mean": self.mean, "scored": self.scored}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.mean, self.scored = float(state["mean"]), int(state["scored"])


@pytest.fixture
def judge() -> CountingJudge:
    """A judge that likes `yes`."""
    return CountingJudge()


@pytest.fixture
def judged(inputs: FinetuneInputs, judge: CountingJudge, pairs: Callable[..., list[CuratedPair]]) -> FinetuneInputs:
    """Inputs with a judge for candidates and gains, on 48 prompts of which no two are alike."""
    distinct = list({pair.prompt: pair for pair in pairs(96, seed=1)}.values())[:48]
    assert len(distinct) == 48
    return dataclasses.replace(inputs, train=distinct, ranker=judge, gains=RankGains(), judge_digest="count-yes")


@pytest.fixture
def length_reward() -> LengthReward:
    """A reward that likes short answers."""
    return LengthReward()


@pytest.fixture
def quick() -> GrpoParams:
    """Twelve steps on twelve rollouts of 16 completions, with evaluations and checkpoints after 4, 8 and 12."""
    return in_world(
        GrpoParams,
        learning_rate=2e-2,
        num_train_epochs=1.0,
        per_device_train_batch_size=16,
        num_generations=4,
        max_completion_length=8,
        logging_steps=2,
        eval_steps=4,
        per_device_eval_batch_size=16,
        validation=in_world(ArenaParams, prompts=6, max_new_tokens=8),
        beta=0.04,
        kl=in_world(GrpoKlParams, target=0.1, beta_min=1e-4, stop_at=None),
        best_within_kl=None,
    )
