from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from plumbline.tasks.params.finetuning import (
    DPO_KEYS,
    KTO_KEYS,
    ORPO_KEYS,
    DpoParams,
    FinetuneParams,
    KtoParams,
    OrpoParams,
    ReferenceParams,
    SftParams,
)
from plumbline.tasks.params.method_sections import LoraParams
from plumbline.tasks.training.finetuning.methods import METHODS


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"beta": 0}, "greater than 0"),
        ({"trainer_args": {"beta": 0.2}}, "trainer_args.beta: this one has its own key. Set `beta` instead"),
        ({"trainer_args": {"loss_weights": [1]}}, "Set `sft_weight` instead"),
        ({"trainer_args": {"data_seed": 1}}, "trainer_args.data_seed: set by Plumbline"),
        ({"log_every": 30}, "log_every \\(30\\) must divide eval_every \\(100\\)"),
        ({"validation": {"prompts": 0}}, "Set best_by: preference_accuracy, or validation.prompts above 0"),
        ({"validation": {"pairs": 513}}, "less than or equal to 512"),
        ({"loss_type": "ipo", "label_smoothing": 0.1}, "no effect on loss_type ipo. Choose one of sigmoid, exo_pair"),
        ({"loss_type": "exo_pair"}, "needs label_smoothing above 0"),
        ({"loss_type": "sft"}, "Input should be"),
        ({"betta": 1}, "Extra inputs are not permitted"),
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
        ({"batch_size": 1}, "greater than or equal to 2"),
        ({"trainer_args": {"train_sampling_strategy": "random"}}, "Set `group_by_length` instead"),
        ({"trainer_args": {"desirable_weight": 2}}, "Set `desirable_weight` instead"),
    ],
)
def test_wrong_kto_params_are_refused_with_what_to_choose(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        KtoParams(**given)


def test_sft_has_its_own_keys() -> None:
    with pytest.raises(ValidationError, match="Set `save_every` instead"):
        SftParams(trainer_args={"save_steps": 5})


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


def test_keys_are_arguments_of_trl_and_fields() -> None:
    from trl import DPOConfig, KTOConfig
    from trl.experimental.orpo import ORPOConfig

    for keys, config, params in (
        (DPO_KEYS, DPOConfig, DpoParams),
        (KTO_KEYS, KTOConfig, KtoParams),
        (ORPO_KEYS, ORPOConfig, OrpoParams),
    ):
        assert keys.keys() <= set(config.__dataclass_fields__)
        assert set(keys.values()) <= set(params.model_fields)


def test_a_stack_names_known_methods_and_one_at_least() -> None:
    assert FinetuneParams(methods=("sft", "dpo", "dpo")).methods == ("sft", "dpo", "dpo")
    for wrong in ((), ("sfx",), ("dpo",) * 9):
        with pytest.raises(ValidationError, match="methods"):
            FinetuneParams(methods=wrong)
