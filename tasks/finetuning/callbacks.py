"""What fine-tuning adds around the steps of a trainer: its figures in the progress, a last row, early stopping."""

from __future__ import annotations

import math
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from tasks.models.training import ReportProgress

WATCHED = ("eval_preference_accuracy", "eval_win_rate")
"""Validation metrics that early stopping looks at; higher is better."""

_FIGURES = {
    "rewards/accuracies": "acc",
    "mean_token_accuracy": "token acc",
    "eval_preference_accuracy": "validation acc",
    "eval_win_rate": "win",
}


class ReportFigures(ReportProgress):
    """The shared progress (which also ends a diverging run), with the figures of SFT and DPO in its note."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Remember the figures for the next report; raise `StageError` when the loss is no number."""
        super().on_log(args, state, control, logs, **kwargs)
        logs = logs or {}
        figures = [f"{short} {logs[name]:.2f}" for name, short in _FIGURES.items() if name in logs]
        if figures:
            loss = [f"loss {logs['loss']:.2f}"] if "loss" in logs else []
            self.note = " ".join([*loss, *figures])


class LogTheLastStep(TrainerCallback):  # type: ignore[misc]
    """Log the last step too, which a fixed interval misses."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask for a log row at the end."""
        if state.global_step >= state.max_steps:
            control.should_log = True


class Patience(TrainerCallback, ExportableState):  # type: ignore[misc]
    """Stop when none of the watched metrics has improved for `patience` evaluations in a row.

    Its counters are part of each checkpoint, so a resumed run stops where an uninterrupted one would.
    """

    def __init__(self, patience: int, min_delta: float) -> None:
        self.patience = patience
        self.min_delta = min_delta
        self.best: dict[str, float] = {}
        self.evaluations_without_gain = 0
        self.reason: str | None = None

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        """Count evaluations without gain, and stop when patience is at its end."""
        watched = {name: metrics[name] for name in WATCHED if name in metrics}
        gained = {
            name: value for name, value in watched.items() if value > self.best.get(name, -math.inf) + self.min_delta
        }
        self.best |= gained
        self.evaluations_without_gain = 0 if gained else self.evaluations_without_gain + 1
        if self.evaluations_without_gain >= self.patience:
            names = " and ".join(name.removeprefix("eval_") for name in watched)
            self.reason = (
                f"early stopping at step {state.global_step}: no gain in {names} over {self.patience} evaluations"
            )
            control.should_training_stop = True

    def state(self) -> dict[str, Any]:
        """Arguments and counters, as transformers stores them in a checkpoint."""
        return {
            "args": {"patience": self.patience, "min_delta": self.min_delta},
            "attributes": {
                "best": dict(self.best),
                "evaluations_without_gain": self.evaluations_without_gain,
                "reason": self.reason,
            },
        }
