from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from plumbline.data_contracts.errors import ParamsError
from plumbline.tasks.params.finetuning import FinetuneParams
from plumbline.tasks.params.grpo import GRPO_KEYS, GrpoParams
from plumbline.tasks.params.method_sections import LoraParams
from plumbline.tasks.training.finetuning.grpo import run as grpo
from plumbline.tasks.training.finetuning.methods import METHODS


def refusal(**values: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        GrpoParams(**values)
    return str(caught.value)


def test_a_batch_that_does_not_divide_says_which_would() -> None:
    message = refusal(batch_size=30, candidates=8)
    assert "30 completions" in message
    assert "24 or 32" in message
    assert "among 2, 3, 5, 6, 10, 15" in message
    assert "such as 8," in refusal(batch_size=4, candidates=8)


def test_a_rollout_of_several_forward_passes_divides_as_a_whole() -> None:
    """12 completions a pass do not divide by 8, two passes (24) do."""
    refusal(batch_size=12, candidates=8)
    GrpoParams(batch_size=12, candidates=8, gradient_accumulation=2)
    GrpoParams(batch_size=12, candidates=8, steps_per_rollout=2, eval_every=30, log_every=5)


def test_a_checkpoint_inside_a_rollout_is_refused() -> None:
    assert "multiple of steps_per_rollout x passes (8)" in refusal(
        steps_per_rollout=4, passes=2, eval_every=20, log_every=5
    )


def test_dropout_is_refused() -> None:
    assert "Set it to 0" in refusal(lora=LoraParams(dropout=0.1))


def test_replacing_groups_under_vllm_is_refused() -> None:
    assert "equally often" in refusal(use_vllm=True, resample_zero_variance=1)


@pytest.mark.parametrize("name", sorted(GRPO_KEYS))
def test_a_trl_argument_with_a_key_of_its_own_is_refused(name: str) -> None:
    assert f"Set `{GRPO_KEYS[name]}` instead" in refusal(trainer_args={name: 1})


@pytest.mark.parametrize("name", ["log_completions", "top_k", "reward_weights", "shuffle_dataset", "disable_dropout"])
def test_a_trl_argument_that_would_break_the_method_is_refused(name: str) -> None:
    assert f"trainer_args.{name}: not with this method" in refusal(trainer_args={name: 1})


def test_unknown_and_impossible_trl_arguments_are_refused_before_any_work() -> None:
    method = METHODS["grpo"]
    with pytest.raises(ParamsError, match="no argument 'epsilon_hihg', did you mean 'epsilon_high'"):
        method.check(FinetuneParams(grpo=GrpoParams(trainer_args={"epsilon_hihg": 0.3})))
    with pytest.raises(ParamsError, match=r"finetune\.grpo: TRL refuses"):
        method.check(FinetuneParams(grpo=GrpoParams(trainer_args={"auto_find_batch_size": True})))
    method.check(FinetuneParams(grpo=GrpoParams(trainer_args={"epsilon_high": 0.3})))


def test_params_reach_trl() -> None:
    params = GrpoParams(steps_per_rollout=5, passes=2, gradient_accumulation=2, eval_every=20, entropy_bonus=0.01)
    config = grpo._config(params, seed=3, folder=grpo.Path("unused"))
    assert config.steps_per_generation == 10
    assert config.num_iterations == 2
    assert (config.beta, config.entropy_coef, config.scale_rewards) == (params.kl.beta, 0.01, "none")
    assert params.steps_a_rollout == 10
    assert params.completions_a_rollout == 64 * 2 * 5
