from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from plumbline.data_contracts.errors import ModelError, ParamsError
from plumbline.tasks.models.loading import load_tokenizer
from plumbline.tasks.params.judge import JudgeKind, JudgeParams
from plumbline.tasks.training.rewards.judges.build import JUDGES, JudgeMeans, build_judge
from plumbline.tasks.training.rewards.judges.reward_model import RewardModelJudge
from tests.tasks.training.rewards.test_scoring import build_reward


def test_every_kind_has_its_judge(tmp_path: Path) -> None:
    assert set(JUDGES) == set(get_args(JudgeKind))
    for kind in ("rule", "llm"):
        judge = build_judge(JudgeParams(kind=kind), JudgeMeans(None, tmp_path))
        assert (judge.name, judge.noise) == (kind, None)
        assert judge.digest == build_judge(JudgeParams(kind=kind), JudgeMeans(None, tmp_path)).digest


def test_the_trained_reward_model_or_another(policy_folder: Path, tmp_path: Path) -> None:
    trained = build_reward(policy_folder, tmp_path / "trained", load_tokenizer(policy_folder))
    other = build_reward(policy_folder, tmp_path / "other", load_tokenizer(policy_folder))
    means = JudgeMeans(trained, tmp_path)
    judge = build_judge(JudgeParams(), means)
    assert isinstance(judge, RewardModelJudge)
    assert judge.model is trained
    params = JudgeParams.model_validate({"reward_model": {"path": str(tmp_path / "other"), "temperature": 2}})
    judge = build_judge(params, means)
    assert isinstance(judge, RewardModelJudge)
    assert (judge.model.folder, judge.temperature) == (other.folder, 2)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"judge\.reward_model\.path is null, but this run has trained none"):
        build_judge(JudgeParams(), JudgeMeans(None, tmp_path))
    params = JudgeParams.model_validate({"reward_model": {"path": str(tmp_path / "nowhere")}})
    with pytest.raises(ModelError, match="expected a reward model"):
        build_judge(params, JudgeMeans(None, tmp_path))
