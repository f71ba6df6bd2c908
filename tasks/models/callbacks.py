"""Callbacks around the steps of a trainer: progress, sealed checkpoints, a last row, early stopping."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from plumbline.data_contracts.errors import StageError
from plumbline.data_contracts.progress import Progress
from plumbline.tasks.models.checkpoints import seal
from plumbline.tasks.models.processes import is_first, wait

_SHOWN = {
    "loss": "loss",
    "accuracy": "acc",
    "rewards/accuracies": "acc",
    "mean_token_accuracy": "token acc",
    "eval_accuracy": "validation acc",
    "eval_preference_accuracy": "validation acc",
    "eval_win_rate": "win",
}


class ReportProgress(TrainerCallback):  # type: ignore[misc]
    """Tell `progress` after each step, with the latest figures as the note; end a run that diverges."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.note = "training"

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Report the step."""
        self.progress(state.global_step, state.max_steps, self.note)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Remember the figures for the next report; raise `StageError` when the loss is no number."""
        logs = logs or {}
        if not math.isfinite(logs.get("loss", 0.0)):
            raise StageError(
                f"Expected a finite loss, found {logs['loss']} at step {state.global_step} of {state.max_steps}: the "
                f"training diverged. Lower the learning rate (now {args.learning_rate:g}) or lengthen the warm-up."
            )
        parts = [f"{short} {logs[name]:.2f}" for name, short in _SHOWN.items() if name in logs]
        self.note = " ".join(parts) or self.note


class SealCheckpoints(TrainerCallback):  # type: ignore[misc]
    """Mark each checkpoint as whole once all of it is on disk."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Seal the checkpoint that was just written, to which every process added its random state."""
        wait()
        if is_first():
            seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")
        wait()


class LogTheLastStep(TrainerCallback):  # type: ignore[misc]
    """Log the last step too, which a fixed interval misses."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask for a log row at the end."""
        if state.global_step >= state.max_steps:
            control.should_log = True


class Patience(TrainerCallback, ExportableState):  # type: ignore[misc]
    """Stop when none of the watched validation metrics (higher is better) has improved for `patience` evaluations.

    Its counters are part of each checkpoint, so a resumed run stops where an uninterrupted one would.
    """

    def __init__(self, patience: int, min_delta: float, watched: Sequence[str]) -> None:
        self.patience = patience
        self.min_delta = min_delta
        self.watched = tuple(watched)
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
        watched = {name: metrics[f"eval_{name}"] for name in self.watched if f"eval_{name}" in metrics}
        gained = {
            name: value for name, value in watched.items() if value > self.best.get(name, -math.inf) + self.min_delta
        }
        self.best |= gained
        self.evaluations_without_gain = 0 if gained else self.evaluations_without_gain + 1
        if self.evaluations_without_gain >= self.patience:
            self.reason = (
                f"early stopping at step {state.global_step}: no gain in {' and '.join(watched)} "
                f"over {self.patience} evaluations"
            )
            control.should_training_stop = True

    def state(self) -> dict[str, Any]:
        """Arguments and counters, as transformers stores them in a checkpoint."""
        return {
            "args": {"patience": self.patience, "min_delta": self.min_delta, "watched": list(self.watched)},
            "attributes": {
                "best": dict(self.best),
                "evaluations_without_gain": self.evaluations_without_gain,
                "reason": self.reason,
            },
        }


def stop_reason(stateful_callbacks: Mapping[str, Any]) -> str | None:
    """Why a callback ended a run early, from the callbacks' states of its last checkpoint; None if none did.

    A callback that ends runs keeps an attribute `reason`, as `Patience` does.
    """
    states = (state for state in stateful_callbacks.values() if isinstance(state, Mapping))
    reasons = (state.get("attributes", {}).get("reason") for state in states)
    return next((str(reason) for reason in reasons if reason), None)


def usual_callbacks(progress: Progress) -> list[TrainerCallback]:
    """Those of every training; the progress goes last, because a watcher may raise."""
    return [LogTheLastStep(), SealCheckpoints(), ReportProgress(progress)]
