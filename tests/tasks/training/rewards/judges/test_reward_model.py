from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plumbline.data_contracts.errors import JudgeError
from plumbline.data_contracts.records import Message
from plumbline.tasks.models.judging import Judge
from plumbline.tasks.models.loading import load_tokenizer
from plumbline.tasks.training.rewards.judges.reward_model import RewardModelJudge
from plumbline.tasks.training.rewards.scoring import RewardModel
from tests.tasks.training.rewards.test_scoring import build_reward

PROMPTS = [(Message(role="user", content=text),) for text in ("one", "two please")]


@pytest.fixture
def model(policy_folder: Path, tmp_path: Path) -> RewardModel:
    return build_reward(policy_folder, tmp_path, load_tokenizer(policy_folder))


def test_margins_become_probabilities_and_ranks(model: RewardModel) -> None:
    """Naive: one scoring a group, sigmoid of each difference."""
    groups = [["yes", "no", "the order"], ["no", "yes"]]
    judge: Judge = RewardModelJudge(model, temperature=0.5)
    verdicts = judge.judge(PROMPTS, groups)
    for prompt, group, found in zip(PROMPTS, groups, verdicts.judgements, strict=True):
        scores = model.score([prompt] * len(group), group)
        assert found is not None
        for i, j in np.ndindex(found.wins.shape):
            assert found.wins[i, j] == pytest.approx(1 / (1 + math.exp((scores[j] - scores[i]) / 0.5)), abs=1e-5)
        assert np.argsort(found.ranks).tolist() == np.argsort([-score for score in scores]).tolist()
    assert (verdicts.counts["requests"], verdicts.counts["unusable"]) == (2, 0)


def test_a_candidate_beyond_the_length_leaves_its_group_without_a_judgement(model: RewardModel) -> None:
    verdicts = RewardModelJudge(model).judge(PROMPTS, [["yes", "no " * 80], ["yes", "no"]])
    assert verdicts.judgements[0] is None
    assert verdicts.judgements[1] is not None
    assert verdicts.counts["unusable"] == 1


def test_a_model_that_gives_nan_is_an_error() -> None:
    class Broken:
        digest = "x"

        def score_fitting(self, prompts: Any, responses: Any) -> list[float]:
            return [math.nan] * len(responses)

    judge = RewardModelJudge(Broken())  # type: ignore[arg-type]
    with pytest.raises(JudgeError, match="judge reward_model: Expected finite scores"):
        judge.judge(PROMPTS, [["a", "b"], ["a", "b"]])


def test_the_digest_names_model_and_temperature(model: RewardModel) -> None:
    assert RewardModelJudge(model).digest == RewardModelJudge(RewardModel.load(model.folder or Path())).digest
    assert RewardModelJudge(model).digest != RewardModelJudge(model, temperature=2).digest
