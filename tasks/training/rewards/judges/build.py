"""The judge that params name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from plumbline.data_contracts.errors import ParamsError
from plumbline.tasks.models.judging import Judge
from plumbline.tasks.params.judge import JudgeKind, JudgeParams
from plumbline.tasks.training.rewards.judges.llm import LlmJudge
from plumbline.tasks.training.rewards.judges.reward_model import RewardModelJudge
from plumbline.tasks.training.rewards.judges.rule import RuleJudge
from plumbline.tasks.training.rewards.mixture import Mixture
from plumbline.tasks.training.rewards.scoring import RewardModel
from plumbline.tasks.training.rewards.terms import build_term


@dataclass(frozen=True, slots=True)
class JudgeMeans:
    """The means to build judges: the reward model trained here, if any, and a folder for answers of a server."""

    reward_model: RewardModel | None
    cache: Path
    trust_remote_code: bool = False


def build_judge(params: JudgeParams, means: JudgeMeans) -> Judge:
    """The judge of `params.kind`, its noise not yet measured (`reliability.calibrate`, `reliability.MeasuredJudge`).

    Raises `ParamsError` for what params name and is not there, `ModelError` for a folder without a reward model.
    """
    return JUDGES[params.kind](params, means)


def _rule(params: JudgeParams, means: JudgeMeans) -> Judge:
    rules = Mixture([(term, build_term(term, None)) for term in params.rule.terms])
    return RuleJudge(rules, params.rule.temperature)


def _reward_model(params: JudgeParams, means: JudgeMeans) -> Judge:
    section = params.reward_model
    if section.path is not None:
        model = RewardModel.load(Path(section.path), trust_remote_code=means.trust_remote_code)
        return RewardModelJudge(model, section.temperature)
    if means.reward_model is None:
        raise ParamsError(
            "judge.kind is reward_model and judge.reward_model.path is null, but this run has trained none. Train one "
            "(stage `reward`), name a folder, or choose another kind."
        )
    return RewardModelJudge(means.reward_model, section.temperature)


def _llm(params: JudgeParams, means: JudgeMeans) -> Judge:
    return LlmJudge(params.llm, means.cache)


JUDGES: Mapping[JudgeKind, Callable[[JudgeParams, JudgeMeans], Judge]] = {
    "rule": _rule,
    "reward_model": _reward_model,
    "llm": _llm,
}
