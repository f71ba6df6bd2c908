"""One record with a system turn, a template without system turns: every stage sets it aside, and goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from plumbline.data_contracts.artifact import read_artifact, writing
from plumbline.data_contracts.errors import ModelError
from plumbline.data_contracts.records import CuratedPair, Message, UnpairedResponse, dump_jsonl
from plumbline.tasks.evaluation import evaluate_policy, self_play
from plumbline.tasks.models.loading import load_tokenizer
from plumbline.tasks.params.comparison import SelfPlayParams
from plumbline.tasks.params.evaluation import EvaluationParams
from plumbline.tasks.params.finetuning import FinetuneParams, SftParams
from plumbline.tasks.params.judge import JudgeParams
from plumbline.tasks.params.mixture import MixtureParams
from plumbline.tasks.params.reward import RewardParams
from plumbline.tasks.pipeline.stage import Stage, StageContext
from plumbline.tasks.training import build_reference, finetune_policy, train_reward
from tests.support.world import in_world
from tests.tasks.training.finetuning.conftest import make_pairs, reference  # noqa: F401 (fixture)

REFUSING = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system turns') }}{% endif %}"
VALIDATION = {"prompts": 4, "pairs": 4, "max_new_tokens": 4}
COMMON: dict[str, Any] = {"seed": 1, "threads": 1, "reference_trust_remote_code": False}
MEASURED = {
    "num_train_epochs": 1,
    "per_device_train_batch_size": 16,
    "eval_steps": 2,
    "logging_steps": 1,
    "early_stopping": None,
}
FINETUNE = FinetuneParams.model_validate(
    {"methods": ["sft", "kto"], **{name: {**MEASURED, "validation": VALIDATION} for name in ("sft", "kto", "dpo")}}
)
ON_POLICY = MixtureParams.model_validate({"terms": [{"kind": "brevity"}]})


def _with_system_turn(pair: CuratedPair) -> CuratedPair:
    turn = Message(role="system", content="red")
    return pair.model_copy(update={"id": f"{pair.id}-system", "prompt": (turn, *pair.prompt)})


@pytest.fixture
def root(reference: Path, tmp_path: Path) -> Path:  # noqa: F811
    """A workspace's folders: a base whose template refuses system turns, and splits with one such record each."""
    tokenizer = load_tokenizer(reference)
    tokenizer.chat_template = REFUSING + str(tokenizer.chat_template)
    with writing(tmp_path / "base", contract="causal_lm", version=1) as draft:
        for file in reference.iterdir():
            (draft.path / file.name).write_bytes(file.read_bytes())
        tokenizer.save_pretrained(draft.path)
        draft.facts = {}
    with writing(tmp_path / "world", contract="world", version=1) as draft:
        draft.facts = {"enabled": False}
    (tmp_path / "curated").mkdir()
    for seed, (name, count) in enumerate({"train": 48, "validation": 16, "test": 16}.items()):
        pairs = make_pairs(count, seed)
        pairs[3] = pairs[3].model_copy(update={"chosen": "yes <|end|> <|system|>"})
        dump_jsonl(tmp_path / "curated" / f"{name}.jsonl", [*pairs, _with_system_turn(pairs[0])])
    singles = [
        UnpairedResponse(
            id=f"u-{pair.id}",
            prompt=pair.prompt,
            response=pair.chosen,
            desirable=True,
            source="test",
            origin=pair.origin,
        )
        for pair in (make_pairs(1, 9)[0], _with_system_turn(make_pairs(1, 9)[0]))
    ]
    dump_jsonl(tmp_path / "curated" / "unpaired.jsonl", singles)
    return tmp_path


@pytest.fixture
def run(root: Path) -> Callable[..., dict[str, Any]]:
    """Run the body of a stage for real, into the folder of its name."""

    def go(stage: Stage, out: str, deps: dict[str, str], **params: Any) -> dict[str, Any]:
        work = root / "work" / out
        work.mkdir(parents=True, exist_ok=True)
        with writing(root / out, contract=stage.contract, version=1) as draft:
            context = StageContext(root, draft.path, work, {name: root / path for name, path in deps.items()})
            draft.facts = stage.body(context, **COMMON, **params)
        return dict(read_artifact(root / out).facts)

    return go


@pytest.mark.long
@pytest.mark.slow
def test_one_refused_record_costs_itself_alone(root: Path, run: Callable[..., dict[str, Any]]) -> None:
    sft = in_world(SftParams, num_train_epochs=1, per_device_train_batch_size=16, data="curated")
    found = run(
        build_reference.STAGE,
        "reference",
        {"base": "base", "data": "curated"},
        reference_sft=sft,
        reference_refused_threshold=0.1,
    )
    assert found["examples"] == {"given": 48, "used": 48, "too_long": 0}
    assert found["refused_by_template"] == {
        "train": 1,
        "reasons": {"No system turns": 1},
        "rows": [{"split": "train", "id": "0-0-system", "reason": "No system turns"}],
    }
    assert found["control_tokens"] == {"rows": 1, "tokens": {"<|end|>": 1, "<|system|>": 1}}

    found = run(
        train_reward.STAGE,
        "reward",
        {"init": "reference", "curated": "curated"},
        reward=RewardParams.model_validate(
            {"num_train_epochs": 1, "per_device_train_batch_size": 16, "eval_steps": 2, "logging_steps": 1}
        ),
        reference_refused_threshold=0.1,
    )
    assert found["pairs"] == {"train": 48, "validation": 16}
    assert [found["refused_by_template"][name] for name in ("train", "validation", "test")] == [1, 1, 1]
    assert found["control_tokens"]["rows"] == 3

    on_feedback = {"reference": "reference", "reward": "reward", "curated": "curated"}
    found = run(
        finetune_policy.STAGE,
        "policy",
        on_feedback,
        finetune=FINETUNE,
        mixture=ON_POLICY,
        judge=JudgeParams(),
        reference_refused_threshold=0.1,
    )
    assert [found["refused_by_template"][name] for name in ("train", "validation", "unpaired")] == [1, 1, 1]
    assert found["stages"]["1-sft"]["examples"]["given"] == 48
    assert found["stages"]["2-kto"]["examples"] == {"desirable": 49, "undesirable": 48}
    assert found["control_tokens"]["tokens"] == {"<|end|>": 2, "<|system|>": 2}

    found = run(
        evaluate_policy.STAGE,
        "evaluation",
        {**on_feedback, "policy": "policy", "base": "base", "world": "world"},
        evaluation=EvaluationParams.model_validate({"max_new_tokens": 4, "resamples": 100}),
    )
    assert found["refused_by_template"]["test"] == 1
    assert found["metrics"]["counts"]["pairs"] == 16

    found = run(
        self_play.STAGE,
        "played",
        {**on_feedback, "policy": "policy"},
        self_play=in_world(SelfPlayParams, prompts=32, max_new_tokens=24),
        judge=JudgeParams(min_kappa=-1, max_unusable=1.0, max_position_bias=1.0),
    )
    assert found["refused_by_template"]["train"] == 1
    lines = (root / "played" / "pairs.jsonl").read_bytes().splitlines()
    prompts = [orjson.loads(line)["prompt"] for line in lines]
    assert prompts
    assert {turn["role"] for prompt in prompts for turn in prompt} == {"user"}


def test_too_many_end_the_run_in_one_sentence(root: Path, run: Callable[..., dict[str, Any]]) -> None:
    pairs = make_pairs(4, 0)
    dump_jsonl(root / "curated" / "train.jsonl", [*pairs[1:], _with_system_turn(pairs[0])])
    with pytest.raises(ModelError, match=r"refuses 1 of 4 records \(25\.0%\).*0-0-system: No system turns"):
        run(
            build_reference.STAGE,
            "reference",
            {"base": "base", "data": "curated"},
            reference_sft=in_world(SftParams, data="curated"),
            reference_refused_threshold=0.1,
        )
