from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from plumbline.data_contracts.errors import ParamsError
from plumbline.tasks.params.finetuning import FinetuneParams
from plumbline.tasks.params.grpo import GrpoParams
from plumbline.tasks.params.method_sections import LoraParams
from plumbline.tasks.training.finetuning.grpo import run as grpo
from plumbline.tasks.training.finetuning.methods import METHODS


def refusal(**values: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        GrpoParams(**values)
    return str(caught.value)


def test_a_batch_that_does_not_divide_says_which_would() -> None:
    message = refusal(per_device_train_batch_size=30, num_generations=8)
    assert "30 completions" in message
    assert "24 or 32" in message
    assert "among 2, 3, 5, 6, 10, 15" in message
    assert "such as 8," in refusal(per_device_train_batch_size=4, num_generations=8)


def test_a_rollout_of_several_forward_passes_divides_as_a_whole() -> None:
    """12 completions a pass do not divide by 8, two passes (24) do."""
    refusal(per_device_train_batch_size=12, num_generations=8)
    GrpoParams(per_device_train_batch_size=12, num_generations=8, gradient_accumulation_steps=2)
    GrpoParams(
        per_device_train_batch_size=12, num_generations=8, steps_per_generation=2, eval_steps=30, logging_steps=5
    )


def test_a_checkpoint_inside_a_rollout_is_refused() -> None:
    assert "multiple of the optimiser steps of a rollout (8" in refusal(
        steps_per_generation=4, num_iterations=2, eval_steps=20, logging_steps=5
    )


def test_dropout_is_refused() -> None:
    assert "Set it to 0" in refusal(lora=LoraParams(lora_dropout=0.1))


def test_replacing_groups_under_vllm_is_refused() -> None:
    assert "equally often" in refusal(use_vllm=True, resample_zero_variance=1)


def test_forward_passes_of_a_rollout_that_are_no_whole_optimiser_step_are_refused() -> None:
    message = refusal(steps_per_generation=5, gradient_accumulation_steps=2)
    assert "multiple of gradient_accumulation_steps (2)" in message
    assert "Set it to 6" in message


def test_a_start_of_beta_outside_its_bounds_is_refused() -> None:
    assert "0 < kl.beta_min <= beta <= kl.beta_max, found 0.02, 0.01, 1.0" in refusal(beta=0.01)


@pytest.mark.parametrize(("name", "key"), sorted(GrpoParams.elsewhere.items()))
def test_a_trl_argument_that_follows_from_another_key_is_refused(name: str, key: str) -> None:
    assert f"Set `{key}` instead" in refusal(**{name: 1})


@pytest.mark.parametrize("name", ["log_completions", "top_k", "reward_weights", "shuffle_dataset", "disable_dropout"])
def test_a_trl_argument_that_would_break_the_method_is_refused(name: str) -> None:
    assert f"{name}\n  {GrpoParams.refused[name]}. Remove it." in refusal(**{name: 1})


def test_unknown_and_impossible_trl_arguments_are_refused_before_any_work() -> None:
    method = METHODS["grpo"]
    assert "did you mean 'epsilon_high'?" in refusal(epsilon_hihg=0.3)
    with pytest.raises(ParamsError, match=r"finetune\.grpo: TRL refuses"):
        method.check(FinetuneParams(grpo=GrpoParams(auto_find_batch_size=True)))
    method.check(FinetuneParams(grpo=GrpoParams(epsilon_high=0.3)))


def test_params_reach_trl() -> None:
    params = GrpoParams(
        steps_per_generation=10, num_iterations=2, gradient_accumulation_steps=2, eval_steps=20, entropy_coef=0.01
    )
    config = grpo._config(params, seed=3, folder=grpo.Path("unused"))
    assert config.steps_per_generation == 10
    assert config.num_iterations == 2
    assert (config.beta, config.entropy_coef, config.scale_rewards) == (params.beta, 0.01, "none")
    assert params.steps_a_rollout == 10
    assert params.completions_a_rollout == 8 * 2 * 5
