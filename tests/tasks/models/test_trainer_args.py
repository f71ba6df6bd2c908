from __future__ import annotations

from pathlib import Path

import pytest

from plumbline.data_contracts.errors import ParamsError
from plumbline.tasks.models.trainer_args import must_name_cpu, trainer_config
from plumbline.tasks.params.finetuning import DpoParams
from tests.support.world import in_world


def test_an_argument_that_trl_refuses_is_refused() -> None:
    from trl import DPOConfig

    params = in_world(DpoParams, lr_scheduler_kwargs={}, optim="no_such_optimiser")
    with pytest.raises(ParamsError, match=r"finetune\.dpo: TRL refuses these arguments.*no_such_optimiser"):
        trainer_config(DPOConfig, "finetune.dpo", params, Path("unused"), seed=0)


def test_fields_and_further_arguments_reach_trl_and_cpu_defaults_are_off(tmp_path: Path) -> None:
    """Lengths and the order of examples are Plumbline's own: TRL cuts nothing and groups nothing."""
    from trl import DPOConfig

    params = in_world(
        DpoParams, learning_rate=3e-4, warmup_steps=7, eval_steps=40, logging_steps=10, max_grad_norm=0.25
    )
    assert params.groups_by_length
    config = trainer_config(DPOConfig, "finetune.dpo", params, tmp_path, seed=0)
    assert (config.learning_rate, config.warmup_steps, config.get_warmup_steps(100)) == (3e-4, 7, 7)
    assert (config.eval_steps, config.save_steps, config.logging_steps) == (40, 40, 10)
    assert config.max_grad_norm == 0.25
    assert config.max_length is None
    assert config.train_sampling_strategy == "random"
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
