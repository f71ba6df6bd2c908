from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from plumbline.data_contracts.errors import ParamsError
from plumbline.flows.graph.stages import STAGES
from plumbline.flows.graph.variants import validated_variants
from plumbline.tasks.params.layers import load_layers
from plumbline.tasks.params.section import flatten
from plumbline.tasks.params.training import METHODS, TrainingParams
from plumbline.tasks.params.validation import validate_params
from plumbline.tasks.params.whole import Params
from plumbline.tasks.pipeline.stage import declared


def params(**document: Any) -> Params:
    return validate_params(document, Path("params.yaml"))


def sections(of: Params) -> dict[str, Any]:
    """Every section that trains, by its dotted name."""
    methods = {f"finetune.{name}": getattr(of.finetune, name) for name in METHODS}
    return {"reference.sft": of.reference.sft, "reward": of.reward} | methods


def test_what_is_shared_recurs_in_three_sections_and_is_of_the_same_type() -> None:
    """The longest completion is that of evaluations as well."""
    trained = sections(Params())
    for name in TrainingParams.model_fields.keys() - {"max_completion_length"}:
        assert sum(name in type(section).model_fields for section in trained.values()) >= 3, name


def lengths(of: Params) -> dict[str, int | None]:
    """Every longest completion, by its dotted key."""
    flat = flatten(of.model_dump(mode="json", exclude={"training"}))
    return {key: value for key, value in flat if key.endswith(("max_new_tokens", "max_completion_length"))}


def test_the_longest_completion_is_that_of_everything_that_samples() -> None:
    """An evaluation while training for each of six methods, two methods that sample, the evaluation, self-play."""
    assert len(lengths(Params())) == 10
    assert set(lengths(Params()).values()) == {None}
    assert set(lengths(params(training={"max_completion_length": 32})).values()) == {32}


def test_a_length_of_its_own_comes_before_the_shared_one() -> None:
    own = {
        "finetune": {"ppo": {"max_completion_length": 8, "validation": {"max_new_tokens": None}}},
        "evaluation": {"max_new_tokens": 9},
    }
    found = lengths(params(training={"max_completion_length": 32}, **own))
    assert found.pop("finetune.ppo.max_completion_length") == 8
    assert found.pop("finetune.ppo.validation.max_new_tokens") is None
    assert found.pop("evaluation.max_new_tokens") == 9
    assert set(found.values()) == {32}


@pytest.mark.parametrize(
    ("document", "measured"),
    [
        ({}, True),
        ({"training": {"max_completion_length": 32}}, False),
        ({"training": {"max_completion_length": 32}, "self_play": {"max_new_tokens": None}}, True),
        ({"evaluation": {"max_new_tokens": 32}}, True),
    ],
)
def test_lengths_are_measured_unless_all_are_set(document: dict[str, Any], measured: bool) -> None:
    assert params(**document).derived.measures_lengths == measured


def test_what_is_judged_together_is_what_the_judge_and_grpo_take() -> None:
    both = {"reward": {"max_length": 64}, "finetune": {"grpo": {"max_length": 32}}}
    assert params(**both).derived.longest_sequence == 64
    both["finetune"]["methods"] = ["grpo"]  # type: ignore[assignment]
    assert params(**both).derived.longest_sequence == 32


def test_a_change_of_the_shared_length_runs_again_what_samples() -> None:
    def changed(before: Params, after: Params) -> set[str]:
        return {name for name, stage in STAGES.items() if declared(stage, before) != declared(stage, after)}

    at_32, at_64 = (params(training={"max_completion_length": length}) for length in (32, 64))
    assert changed(at_32, at_64) == {"finetune", "evaluate"}
    assert changed(params(), at_32) == {"lengths", "finetune", "evaluate"}
    assert changed(params(), params(evaluation={"max_new_tokens": 32})) == {"evaluate"}


def test_the_place_of_a_length_is_that_of_the_shared_key(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("training:\n  max_completion_length: 32\nself_play:\n  max_new_tokens: 8\n")
    found = load_layers(tmp_path)
    for key in ("finetune.dpo.validation.max_new_tokens", "finetune.ppo.max_completion_length"):
        assert found.place_of(key.split(".")) == f"{tmp_path / 'params.yaml'}:2"
    assert found.place_of(["evaluation", "max_new_tokens"]) == f"{tmp_path / 'params.yaml'}:2"
    assert found.place_of(["self_play", "max_new_tokens"]) == f"{tmp_path / 'params.yaml'}:4"


def test_nothing_is_shared_by_default() -> None:
    assert params(training={}) == params() == Params()
    assert set(TrainingParams().model_dump().values()) == {None}


def test_a_shared_value_is_that_of_every_section_with_the_field() -> None:
    found = params(training={"weight_decay": 0.1, "max_length": 64, "early_stopping": {"patience": 2}})
    for name, section in sections(found).items():
        assert section.weight_decay == 0.1, name
        assert getattr(section, "max_length", 64) == 64, name
    assert found.finetune.ppo.early_stopping == found.finetune.dpo.early_stopping
    assert found.finetune.ppo.early_stopping is not None
    assert found.finetune.ppo.early_stopping.patience == 2
    assert not hasattr(found.finetune.ppo, "max_length")
    assert found.reward.further_arguments == {}


def test_a_value_of_the_section_itself_comes_first_also_null_and_the_default() -> None:
    """0.0 is DPO's default weight decay: the document sets it, so it stays."""
    found = params(
        training={"weight_decay": 0.1, "lora": {"r": 4}},
        finetune={"dpo": {"weight_decay": 0.0, "lora": None}, "kto": {"lora": {"lora_alpha": 8}}},
    )
    assert (found.finetune.dpo.weight_decay, found.finetune.dpo.lora) == (0.0, None)
    assert found.finetune.kto.lora is not None
    assert (found.finetune.kto.lora.r, found.finetune.kto.lora.lora_alpha) == (16, 8)
    assert found.finetune.sft.lora is not None
    assert (found.finetune.sft.weight_decay, found.finetune.sft.lora.r) == (0.1, 4)


def test_intervals_of_ppo_are_updates_and_not_shared() -> None:
    found = params(training={"logging_steps": 10, "eval_steps": 20}, finetune={"methods": ["ppo"]})
    assert (found.finetune.dpo.logging_steps, found.finetune.dpo.eval_steps) == (10, 20)
    assert (found.finetune.ppo.logging_steps, found.finetune.ppo.eval_steps) == (1, 16)


def test_a_method_that_does_not_run_refuses_no_shared_value() -> None:
    """12 completions make no whole groups of 8: GRPO keeps its 8 until it is used, and says why then."""
    shared = {"per_device_train_batch_size": 12}
    found = params(training=shared)
    assert (found.finetune.dpo.per_device_train_batch_size, found.finetune.grpo.per_device_train_batch_size) == (12, 8)
    with pytest.raises(ParamsError, match=r"finetune\.grpo: a rollout of 12 completions"):
        params(training=shared, finetune={"methods": ["dpo", "grpo"]})
    grpo = {"num_generations": 6}
    assert params(training=shared, finetune={"grpo": grpo}).finetune.grpo.per_device_train_batch_size == 12


def test_a_variant_s_method_takes_the_shared_values_too() -> None:
    shared = {"per_device_train_batch_size": 12}
    compare = {"preset": None, "variants": {"judged": {"finetune.methods": ["grpo"]}}}
    with pytest.raises(ParamsError, match=r"compare\.variants\.judged: finetune\.grpo: a rollout of 12 completions"):
        validated_variants(params(training=shared, compare=compare))
    ((_, own),) = validated_variants(
        params(
            training={"per_device_train_batch_size": 16, "bf16": True}, compare=compare, finetune={"dpo": {"beta": 1}}
        )
    )
    assert (own.finetune.grpo.per_device_train_batch_size, own.finetune.grpo.bf16) == (16, True)
    assert own.finetune.dpo.beta == 1


@pytest.mark.parametrize(
    ("shared", "message"),
    [
        ({"bf16": "x"}, r"^params\.yaml: training\.bf16: Input should be a valid boolean[^\n]*$"),
        ({"learning_rate": 1e-5}, r"^params\.yaml: training\.learning_rate: unknown key[^\n]*$"),
        (None, r"^params\.yaml: training: Input should be a valid dictionary[^\n]*$"),
    ],
)
def test_a_wrong_shared_value_is_told_once_where_it_stands(shared: Any, message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        params(training=shared)


@pytest.mark.parametrize("document", [{"reward": None}, {"finetune": 3}, {"finetune": {"methods": None}}])
def test_sections_of_a_wrong_kind_are_told_as_without_shared_values(document: dict[str, Any]) -> None:
    with pytest.raises(ParamsError) as alone:
        params(**document)
    with pytest.raises(ParamsError) as shared:
        params(training={"bf16": True}, **document)
    assert str(shared.value) == str(alone.value)


def test_a_stage_sees_a_change_of_what_is_shared_only_in_its_own_section() -> None:
    """The reward sets its own length, the reference has no `eval_steps`: neither stage changes with the shared one."""
    own = {"reward": {"max_length": 64, "eval_steps": 40}}
    before, after = params(**own), params(training={"max_length": 32, "eval_steps": 80}, **own)
    changed = {name for name, stage in STAGES.items() if declared(stage, before) != declared(stage, after)}
    assert changed == {"reference", "finetune"}
    after = params(training={"eval_steps": 80}, **own)
    changed = {name for name, stage in STAGES.items() if declared(stage, before) != declared(stage, after)}
    assert changed == {"finetune"}
