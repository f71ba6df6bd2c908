from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from ruamel.yaml import YAML

from plumbline.tasks.params.finetuning import DpoParams, ImitationParams, KtoParams, OrpoParams, SftParams
from plumbline.tasks.params.grpo import GrpoParams
from plumbline.tasks.params.ppo import PpoParams
from plumbline.tasks.params.reward import RewardParams
from plumbline.tasks.params.trainer_section import TrainerSection
from plumbline.tasks.params.whole import Params

SECTIONS: list[type[TrainerSection]] = [
    SftParams,
    RewardParams,
    ImitationParams,
    DpoParams,
    KtoParams,
    OrpoParams,
    GrpoParams,
    PpoParams,
]


@pytest.mark.parametrize("section", SECTIONS)
def test_further_arguments_stand_beside_the_fields_and_are_kept(section: type[TrainerSection]) -> None:
    given = {"adam_beta2": 0.95, "optim": "adafactor"}
    found = section.model_validate(given)
    assert found.further_arguments == given
    assert section().further_arguments == {}
    assert found != section()
    assert section.model_validate(found.model_dump()) == found
    assert found.model_dump(mode="json")["adam_beta2"] == 0.95
    with pytest.raises(ValidationError, match="frozen"):
        found.optim = "sgd"  # type: ignore[attr-defined]


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("adam_beta_2", 0.9, "unknown key; did you mean 'adam_beta2'?"),
        ("adam_beta2", "x", "expected float, as the config class declares it; found 'x'."),
        ("output_dir", "x", "set by Plumbline"),
        ("qqqq", 1, "unknown key; known keys: "),
    ],
)
def test_others_are_refused_each_where_it_stands(
    section: type[TrainerSection], name: str, value: Any, problem: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        section.model_validate({name: value})
    (error,) = caught.value.errors()
    assert (error["loc"], error["input"]) == ((name,), value)
    assert error["msg"].startswith(problem)


@pytest.mark.parametrize("section", SECTIONS)
def test_tables_name_arguments_of_the_config_and_fields_of_the_section(section: type[TrainerSection]) -> None:
    assert set(section.elsewhere.values()) <= set(section.model_fields)
    assert not (section.elsewhere.keys() | section.refused.keys()) & section.model_fields.keys()


def test_an_argument_of_another_method_is_unknown() -> None:
    assert GrpoParams(epsilon_high=0.3).further_arguments == {"epsilon_high": 0.3}
    with pytest.raises(ValidationError, match="unknown key"):
        DpoParams(epsilon_high=0.3)


def test_several_mistakes_are_told_together_below_the_section() -> None:
    with pytest.raises(ValidationError) as caught:
        Params.model_validate({"finetune": {"dpo": {"seed": 1, "max_grad_norn": 1}}})
    assert [error["loc"] for error in caught.value.errors()] == [
        ("finetune", "dpo", "seed"),
        ("finetune", "dpo", "max_grad_norn"),
    ]


def test_values_of_a_yaml_file_lose_its_formatting() -> None:
    """ruamel's own floats and mappings would reach JSON writers that refuse them."""
    given = YAML().load("lr_scheduler_kwargs:\n  num_cycles: 0.5\nmax_grad_norm: 1e-1\n")
    found = DpoParams.model_validate(given).further_arguments
    assert type(found["max_grad_norm"]) is float
    assert type(found["lr_scheduler_kwargs"]) is dict
    assert type(found["lr_scheduler_kwargs"]["num_cycles"]) is float
