from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from plumbline.tasks.params.finetuning import (
    DpoParams,
    FinetuneParams,
    KtoParams,
    ReferenceParams,
    SftParams,
)
from plumbline.tasks.params.method_sections import LoraParams
from plumbline.tasks.training.finetuning.methods import METHODS


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"beta": 0}, "greater than 0"),
        ({"loss_weights": [1]}, "Set `sft_weight` instead"),
        ({"data_seed": 1}, "data_seed\n  set by Plumbline"),
        ({"max_grad_norm": "large"}, "max_grad_norm\n  expected float"),
        ({"warmup_steps": 1.5}, "it is a number of steps, which is whole; found 1.5"),
        ({"logging_steps": 30}, "logging_steps \\(30\\) must divide eval_steps \\(100\\)"),
        (
            {"validation": {"prompts": 0}},
            "Set metric_for_best_model: preference_accuracy, or validation.prompts above 0",
        ),
        ({"validation": {"pairs": 513}}, "less than or equal to 512"),
        ({"loss_type": "ipo", "label_smoothing": 0.1}, "no effect on loss_type ipo. Choose one of sigmoid, exo_pair"),
        ({"loss_type": "exo_pair"}, "needs label_smoothing above 0"),
        ({"loss_type": "sft"}, "Input should be"),
        ({"betta": 1}, "unknown key; did you mean 'beta'"),
    ],
)
def test_wrong_dpo_params_are_refused_with_what_to_choose(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DpoParams(**given)


@pytest.mark.parametrize("loss_type", ["sigmoid", "robust", "exo_pair"])
def test_losses_that_take_label_smoothing(loss_type: Any) -> None:
    assert DpoParams(loss_type=loss_type, label_smoothing=0.1).label_smoothing == 0.1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"desirable_weight": 2.0}, "set both to auto, or both to numbers"),
        ({"desirable_weight": 0.0, "undesirable_weight": 1.0}, "lie above 0"),
        ({"desirable_weight": float("nan"), "undesirable_weight": 1.0}, "lie above 0"),
        ({"per_device_train_batch_size": 1}, "greater than or equal to 2"),
        ({"train_sampling_strategy": "sequential"}, "Input should be 'random' or 'group_by_length'"),
    ],
)
def test_wrong_kto_params_are_refused_with_what_to_choose(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        KtoParams(**given)


def test_save_steps_is_of_the_reference_alone_where_evaluations_leave_checkpoints() -> None:
    assert SftParams(save_steps=5).save_steps == 5
    with pytest.raises(ValidationError, match="Set `eval_steps` instead"):
        DpoParams(save_steps=5)


def test_lm_head_adapter_is_refused() -> None:
    with pytest.raises(ValidationError, match="Remove it, or choose 'all-linear'"):
        LoraParams(target_modules=("q_proj", "lm_head"))


def test_revision_needs_a_base() -> None:
    with pytest.raises(ValidationError, match="but reference"):
        ReferenceParams(revision="main")


def test_every_method_has_a_section_of_its_name() -> None:
    for name, method in METHODS.items():
        assert FinetuneParams.model_fields[method.name].annotation is not None
        assert name == method.name


def test_a_stack_names_known_methods_and_one_at_least() -> None:
    assert FinetuneParams(methods=("sft", "dpo", "dpo")).methods == ("sft", "dpo", "dpo")
    for wrong in ((), ("sfx",), ("dpo",) * 9):
        with pytest.raises(ValidationError, match="methods"):
            FinetuneParams(methods=wrong)
