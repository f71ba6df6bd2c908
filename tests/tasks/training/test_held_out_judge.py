"""Who judges: the verbs hand the held-out judge to the arena and to the evaluation, and only there."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest

from plumbline.data_contracts.artifact import write_json, writing
from plumbline.data_contracts.records import CuratedPair, Message, Origin, dump_jsonl
from plumbline.tasks.evaluation.evaluate_policy import evaluate_policy
from plumbline.tasks.params.evaluation import EvaluationParams
from plumbline.tasks.params.finetuning import FinetuneParams
from plumbline.tasks.params.judge import JudgeParams
from plumbline.tasks.params.lengths import with_length
from plumbline.tasks.params.mixture import MixtureParams
from plumbline.tasks.pipeline.stage import StageContext
from plumbline.tasks.training.finetune_policy import finetune_policy, learns_from_reward_model
from plumbline.tasks.training.finetuning import stack
from plumbline.tasks.training.finetuning.methods import FinetuneInputs, needs_of
from plumbline.tasks.training.rewards.layout import FACTS
from plumbline.tasks.training.rewards.scoring import RewardModel
from tests.support.world import in_world
from tests.tasks.models.tiny_llama import build_tokenizer

BREVITY = MixtureParams.model_validate({"terms": [{"kind": "brevity", "weight": 0.5}]})
BOTH = MixtureParams.model_validate({"terms": [{"kind": "reward_model"}, {"kind": "brevity", "weight": 0.5}]})
UNWEIGHTED = MixtureParams.model_validate({"terms": [{"kind": "reward_model", "weight": 0}, {"kind": "brevity"}]})
ELSEWHERE = JudgeParams.model_validate({"reward_model": {"path": "another"}})
RULES = JudgeParams(kind="rule")


@dataclass
class Model:
    """Stands for the reward model in `folder`."""

    folder: Path
    max_length: int = 64

    @property
    def digest(self) -> str:
        return f"digest of {self.folder.name}"

    def score(self, prompts: Any, responses: Any) -> list[float]:
        return [0.0] * len(responses)

    def score_fitting(self, prompts: Any, responses: Any) -> list[float | None]:
        return [0.0] * len(responses)


def scorer(judge: Any) -> Model:
    """The model whose method scores."""
    model: Model = judge.__self__
    return model


def params(*methods: str, **sections: Any) -> FinetuneParams:
    return FinetuneParams.model_validate({"methods": methods, **sections})


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StageContext:
    """Folders of a workspace without weights; reward models are stubs that know their folder."""
    monkeypatch.setattr(RewardModel, "load", lambda folder, **_: Model(folder))
    names = ("reference", "reward", "curated", "policy", "base", "world", "out", "work")
    folders = {name: tmp_path / name for name in names}
    for name in ("reference", "curated", "base", "out", "work"):
        folders[name].mkdir()
    (folders["out"] / "training.jsonl").touch()
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(folders["reference"])
    pair = CuratedPair(
        id="1",
        prompt=(Message(role="user", content="hello"),),
        chosen="yes",
        rejected="no",
        source="test",
        origin=Origin(file="made", line=1),
        cluster="1",
    )
    for split in ("train", "validation", "test"):
        dump_jsonl(folders["curated"] / f"{split}.jsonl", [pair])
    with writing(folders["policy"], contract="causal_lm", version=1) as draft:
        tokenizer.save_pretrained(draft.path)
        draft.facts = {"implied_beta": None, "settings": {}}
    with writing(folders["world"], contract="world", version=1) as draft:
        draft.facts = {"enabled": False}
    folders["reward"].mkdir()
    _reward_model(folders["reward"])
    return StageContext(tmp_path, folders["out"], folders["work"], folders)


def _reward_model(folder: Path) -> None:
    write_json(folder / FACTS, {"max_length": 64})
    write_json(folder / "audit.json", {"passed": True, "reasons": [], "of": folder.name})


def _add_judge(context: StageContext) -> Path:
    folder = context.dep("reward") / "held_out"
    folder.mkdir()
    _reward_model(folder)
    return folder


def finetuned(
    context: StageContext, monkeypatch: pytest.MonkeyPatch, of: FinetuneParams, mixture: MixtureParams = BOTH
) -> tuple[FinetuneInputs, dict[str, Any]]:
    given: list[FinetuneInputs] = []
    monkeypatch.setattr(stack, "run", lambda inputs, params: given.append(inputs) or {"method": "stub"})
    facts = finetune_policy(
        context,
        seed=1,
        threads=1,
        finetune=with_length(of, 48),  # whose measurement is another stage's
        mixture=mixture,
        judge=JudgeParams(),
        reference_trust_remote_code=False,
        reference_refused_threshold=0.0,
    )
    return given[0], facts


def test_the_arena_is_given_the_held_out_judge_and_ppo_the_reward_model(
    context: StageContext, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    judge = _add_judge(context)
    inputs, facts = finetuned(context, monkeypatch, params("ppo"))
    assert scorer(inputs.judge) == Model(judge)
    assert inputs.judge_digest == "digest of held_out"
    assert inputs.reward_model == context.dep("reward")
    assert inputs.reward is not None and inputs.reward.digest != ""
    assert (facts["held_out_judge"], facts["optimised_against_judge"]) == ("held_out", False)
    assert facts["reward_terms"] == [{"name": "reward_model", "weight": 1.0}, {"name": "brevity", "weight": 0.5}]
    assert not caplog.records


def test_the_mixture_scores_by_the_reward_model_beside_the_judge(
    context: StageContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    from plumbline.tasks.training.rewards import mixture

    _add_judge(context)
    asked: list[Any] = []
    build = mixture.build_mixture
    monkeypatch.setattr(mixture, "build_mixture", lambda terms, model: asked.append(model) or build(terms, model))
    finetuned(context, monkeypatch, params("ppo"))
    assert asked == [Model(context.dep("reward"))]


def test_without_one_the_reward_model_judges_and_that_is_said_once(
    context: StageContext, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    inputs, facts = finetuned(context, monkeypatch, params("ppo"))
    assert inputs.judge_digest == "digest of reward"
    assert (facts["held_out_judge"], facts["optimised_against_judge"]) == ("reward_model", True)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "Set reward.held_out_share" in record.getMessage()


@pytest.mark.parametrize(("method", "mixture"), [("dpo", BOTH), ("ppo", BREVITY)])
def test_a_policy_that_no_reward_model_teaches_is_warned_of_nothing(
    context: StageContext,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    method: str,
    mixture: MixtureParams,
) -> None:
    inputs, facts = finetuned(context, monkeypatch, params(method), mixture)
    assert (facts["held_out_judge"], facts["optimised_against_judge"]) == ("reward_model", False)
    assert (inputs.reward is None) == (method == "dpo")
    assert not caplog.records


@pytest.mark.parametrize(
    ("of", "mixture", "judge", "expected"),
    [
        (params("dpo"), BOTH, JudgeParams(), False),
        (params("ppo"), BOTH, RULES, True),
        (params("ppo"), UNWEIGHTED, JudgeParams(), False),
        (params("sft", "ppo"), BREVITY, JudgeParams(), False),
        (params("grpo"), BREVITY, JudgeParams(), True),
        (params("grpo"), BOTH, RULES, False),
        (params("grpo"), BOTH, ELSEWHERE, False),
        (params("grpo", grpo={"reward_weight": 0.1}), BOTH, RULES, True),
    ],
)
def test_what_counts_as_learning_from_the_reward_model(
    of: FinetuneParams, mixture: MixtureParams, judge: JudgeParams, expected: bool
) -> None:
    assert learns_from_reward_model(needs_of(of), mixture, judge) is expected


def test_the_mixture_is_built_for_those_that_maximise_it() -> None:
    assert [needs_of(params(*methods)).mixture for methods in (("dpo",), ("grpo",), ("dpo", "ppo"))] == [
        False,
        False,
        True,
    ]
    assert needs_of(params("grpo", grpo={"reward_weight": 0.1})).mixture


@pytest.mark.parametrize("held_out", [False, True])
def test_the_evaluation_is_judged_by_it_too_and_says_so(
    context: StageContext, monkeypatch: pytest.MonkeyPatch, held_out: bool
) -> None:
    from plumbline.tasks.evaluation.measures import evaluate as module

    folder = _add_judge(context) if held_out else context.dep("reward")
    seen: dict[str, Any] = {}

    def evaluate(*given: Any, **named: Any) -> dict[str, Any]:
        seen.update(named, score=given[3])
        finished = {name: {"finished": {"value": 1.0}} for name in ("policy", "reference")}
        endings = {"cut_preferred": {"value": None, "low": None, "high": None, "n": 0}}
        return {"held_out_judge": named["held_out_judge"], "text": finished, "endings": endings}

    monkeypatch.setattr(module, "evaluate", evaluate)
    facts = evaluate_policy(
        context, seed=1, threads=1, evaluation=in_world(EvaluationParams), reference_trust_remote_code=False
    )
    assert scorer(seen["score"]) == Model(folder)
    assert seen["reward_audit"]["of"] == "reward"
    assert seen["judge_audit"] == (orjson.loads((folder / "audit.json").read_bytes()) if held_out else None)
    assert facts["metrics"]["held_out_judge"] == ("held_out" if held_out else "reward_model")
