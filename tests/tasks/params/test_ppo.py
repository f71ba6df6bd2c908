from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from plumbline.tasks.params.ppo import PpoParams
from plumbline.tasks.training.finetuning.ppo.config import PPOConfig

OUR_OWN = {"critic_init", "early_stopping", "lora", "use_vllm", "validation"}
"""Fields that the method reads, and its config does not."""


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"episodes_per_update": 66, "total_episodes": 66, "num_mini_batches": 4}, "episodes_per_update 64"),
        ({"total_episodes": 100, "episodes_per_update": 64}, "Set total_episodes: 128"),
        ({"eval_steps": 5, "logging_steps": 2}, "must divide eval_steps"),
        ({"validation": {"prompts": 0}}, "Set validation.prompts above 0"),
        ({"lora": {"lora_dropout": 0.1}}, "lora.lora_dropout must be 0"),
        ({"max_steps": 1}, "Set `total_episodes` instead"),
        ({"gradient_accumulation_steps": 2}, "Set `per_device_train_batch_size` instead"),
        ({"output_dir": "x"}, "set by Plumbline"),
        ({"beta": 2.0}, "kl.beta_max"),
    ],
)
def test_wrong_params_are_refused_with_what_to_choose(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        PpoParams(**given)
    assert message in str(refusal.value)


def test_all_but_a_few_fields_are_arguments_of_the_config() -> None:
    arguments = {field.name for field in dataclasses.fields(PPOConfig)}
    assert set(PpoParams.model_fields) - arguments == OUR_OWN


def test_params_do_not_wait_for_torch() -> None:
    code = "import sys, plumbline.tasks.params.ppo; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
