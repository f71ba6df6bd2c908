from __future__ import annotations

import errno
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors import SafetensorError

from data_contracts.errors import ParamsError, StageError
from tasks.finetuning.callbacks import Patience, ReportFigures
from tasks.finetuning.params import DpoParams
from tasks.finetuning.training import named_failures, named_rows, stop_reason, trainer_config


def evaluate(patience: Patience, step: int, **metrics: float) -> bool:
    control = SimpleNamespace(should_training_stop=False)
    named = {f"eval_{name}": value for name, value in metrics.items()}
    patience.on_evaluate(SimpleNamespace(), SimpleNamespace(global_step=step), control, named)
    return control.should_training_stop


def test_patience_waits_while_either_metric_improves() -> None:
    """Win rate gains at 2 and accuracy at 3; from 4 on neither does, so patience 2 ends at the second, 5."""
    patience = Patience(patience=2, min_delta=0.0)
    outcomes = [
        evaluate(patience, step, preference_accuracy=accuracy, win_rate=win)
        for step, accuracy, win in [(1, 0.6, 0.5), (2, 0.6, 0.6), (3, 0.7, 0.6), (4, 0.7, 0.6), (5, 0.7, 0.6)]
    ]
    assert outcomes == [False, False, False, False, True]
    assert patience.reason == (
        "early stopping at step 5: no gain in preference_accuracy and win_rate over 2 evaluations"
    )
    assert stop_reason({"Patience": patience.state()}) == patience.reason
    assert stop_reason({"Patience": Patience(2, 0.0).state()}) is None
    assert stop_reason({}) is None


def test_patience_ignores_gains_below_min_delta() -> None:
    """0.61 is 0.01 above 0.60, less than the 0.02 asked for."""
    patience = Patience(patience=1, min_delta=0.02)
    assert not evaluate(patience, 1, preference_accuracy=0.60)
    assert evaluate(patience, 2, preference_accuracy=0.61)


def test_patience_continues_from_a_checkpoint() -> None:
    """One evaluation without gain is stored; after restoring, the second ends the run."""
    before = Patience(patience=2, min_delta=0.0)
    evaluate(before, 1, win_rate=0.5)
    evaluate(before, 2, win_rate=0.5)
    after = Patience.from_state(before.state())
    assert evaluate(after, 3, win_rate=0.5)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_divergence_ends_the_run(loss: float) -> None:
    state, args = SimpleNamespace(global_step=40, max_steps=100), SimpleNamespace(learning_rate=0.5)
    with pytest.raises(StageError, match="at step 40 of 100: the training diverged"):
        ReportFigures(lambda *_: None).on_log(args, state, SimpleNamespace(), {"loss": loss})


def test_progress_shows_loss_accuracy_and_win_rate() -> None:
    seen: list[tuple[int, int, str]] = []
    report = ReportFigures(lambda *told: seen.append(told))
    state = SimpleNamespace(global_step=40, max_steps=100)
    for logs in ({"loss": 0.412, "rewards/accuracies": 0.709}, {"eval_preference_accuracy": 0.6, "eval_win_rate": 0.7}):
        report.on_log(SimpleNamespace(), state, SimpleNamespace(), logs)
        report.on_step_end(SimpleNamespace(), state, SimpleNamespace())
    assert seen == [(40, 100, "loss 0.41 acc 0.71"), (40, 100, "validation acc 0.60 win 0.70")]


def test_curve_merges_train_and_validation_rows_of_a_step() -> None:
    history = [
        {"loss": 0.7, "rewards/accuracies": 0.5, "epoch": 0.5, "step": 2, "num_tokens": 9},
        {"loss": 0.6, "step": 4, "epoch": 1.0},
        {"eval_win_rate": 0.6, "step": 4},
        {"train_runtime": 3.2, "step": 4},
    ]
    assert named_rows(history) == [
        {"step": 2, "loss": 0.7, "accuracy": 0.5},
        {"step": 4, "loss": 0.6, "validation_win_rate": 0.6},
    ]


@pytest.mark.parametrize("kind", [RuntimeError, SafetensorError])
def test_a_full_disk_keeps_its_errno(tmp_path: Path, kind: type[Exception]) -> None:
    with pytest.raises(OSError, match="no space left for checkpoints") as caught, named_failures(tmp_path):
        raise kind("I/O error: No space left on device (os error 28)")
    assert caught.value.errno == errno.ENOSPC


def test_other_failures_pass_through(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes"), named_failures(tmp_path):
        raise RuntimeError("shapes do not match")


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
        trainer_config(DPOConfig, "finetune.dpo", DpoParams(trainer_args=given), output_dir="unused")


def test_trainer_args_reach_trl_and_cpu_defaults_are_off(tmp_path: Path) -> None:
    from trl import DPOConfig

    config = trainer_config(
        DPOConfig, "finetune.dpo", DpoParams(trainer_args={"max_grad_norm": 0.25}), output_dir=str(tmp_path)
    )
    assert config.max_grad_norm == 0.25
    assert not config.bf16
    assert not config.gradient_checkpointing
