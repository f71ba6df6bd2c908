from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from plumbline.tasks.params.ppo import ARGUMENTS, DERIVED, PpoParams
from plumbline.tasks.training.finetuning.ppo.config import PPOConfig


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"episodes_per_update": 66, "episodes": 66, "minibatches": 4}, "episodes_per_update 64"),
        ({"episodes": 100, "episodes_per_update": 64}, "Set episodes: 128"),
        ({"eval_every": 5, "log_every": 2}, "must divide eval_every"),
        ({"validation": {"prompts": 0}}, "Set validation.prompts above 0"),
        ({"lora": {"dropout": 0.1}}, "lora.dropout must be 0"),
        ({"trainer_args": {"learning_rate": 1}}, "Set `lr` instead"),
        ({"trainer_args": {"gradient_accumulation_steps": 2}}, "Set `batch_size` instead"),
        ({"trainer_args": {"output_dir": "x"}}, "set by Plumbline"),
    ],
)
def test_wrong_params_are_refused_with_what_to_choose(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        PpoParams(**given)
    assert message in str(refusal.value)


def test_keys_are_arguments_and_fields() -> None:
    arguments = {field.name for field in dataclasses.fields(PPOConfig)}
    assert (ARGUMENTS | DERIVED).keys() - arguments == {"gradient_checkpointing"} - arguments
    assert set((ARGUMENTS | DERIVED).values()) <= set(PpoParams.model_fields)


def test_params_do_not_wait_for_torch() -> None:
    code = "import sys, plumbline.tasks.params.ppo; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
