from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from plumbline.data_contracts.errors import ParamsError
from plumbline.tasks.models.trainer_args import check_trainer_args, must_name_cpu, trainer_config
from plumbline.tasks.params.optimisation import EvaluatedOptimisation


@dataclass
class Config:
    adam_beta2: float = 0.999
    output_dir: str = ""


def params(trainer_args: dict[str, Any]) -> EvaluatedOptimisation:
    return EvaluatedOptimisation(lr=1e-3, epochs=1, trainer_args=trainer_args)


def test_known_arguments_pass() -> None:
    check_trainer_args(Config, {"adam_beta2": 0.95}, "reward.trainer_args")


def test_unknown_arguments_name_the_nearest() -> None:
    with pytest.raises(
        ParamsError, match=r"reward\.trainer_args: no argument 'adam_beta_2', did you mean 'adam_beta2'"
    ):
        check_trainer_args(Config, {"adam_beta_2": 0.95}, "reward.trainer_args")
    with pytest.raises(ParamsError, match="no argument 'zzz' "):
        check_trainer_args(Config, {"zzz": 1}, "here")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_grad_norn": 1.0}, "max_grad_norm"),
        ({"lr_scheduler_kwargs": 3, "optim": "no_such_optimiser"}, "TRL refuses these arguments"),
    ],
)
def test_wrong_trainer_args_are_refused(given: dict[str, Any], message: str) -> None:
    from trl import DPOConfig

    with pytest.raises(ParamsError, match=message):
        trainer_config(DPOConfig, "finetune.dpo", params(given), output_dir="unused")


def test_trainer_args_reach_trl_and_cpu_defaults_are_off(tmp_path: Path) -> None:
    from trl import DPOConfig

    config = trainer_config(
        DPOConfig,
        "finetune.dpo",
        params({"max_grad_norm": 0.25}),
        output_dir=str(tmp_path),
    )
    assert config.max_grad_norm == 0.25
    assert not config.bf16
    assert not config.gradient_checkpointing


@pytest.mark.parametrize(
    ("accelerator", "processes", "bf16", "named"),
    [(False, 1, False, False), (False, 1, True, True), (False, 2, False, True), (True, 2, True, False)],
)
def test_the_cpu_is_named_where_it_would_not_be_understood(
    monkeypatch: pytest.MonkeyPatch, accelerator: bool, processes: int, bf16: bool, named: bool
) -> None:
    """Without an accelerator, for bf16 and for several processes; with one, never."""
    monkeypatch.setattr("torch.accelerator.is_available", lambda: accelerator)
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    assert must_name_cpu(bf16) is named
