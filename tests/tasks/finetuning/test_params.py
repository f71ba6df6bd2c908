from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tasks.finetuning.methods import METHODS
from tasks.finetuning.params import (
    DPO_KEYS,
    DpoParams,
    FinetuneParams,
    ReferenceParams,
    SftParams,
)
from tasks.finetuning.sections import LoraParams


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
        ({"label_smoothing": 0.1}, "no effect on loss_type sigmoid. Choose one of exo_pair, robust"),
        ({"loss_type": "exo_pair"}, "needs label_smoothing above 0"),
        ({"loss_type": "sft"}, "Input should be"),
        ({"betta": 1}, "Extra inputs are not permitted"),
    ],
)
def test_wrong_dpo_params_are_refused_with_what_to_choose(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DpoParams(**given)


def test_robust_loss_takes_label_smoothing() -> None:
    assert DpoParams(loss_type="robust", label_smoothing=0.1).label_smoothing == 0.1


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


def test_keys_of_dpo_are_arguments_of_trl_and_fields() -> None:
    from trl import DPOConfig

    assert DPO_KEYS.keys() <= set(DPOConfig.__dataclass_fields__)
    assert set(DPO_KEYS.values()) <= set(DpoParams.model_fields)
