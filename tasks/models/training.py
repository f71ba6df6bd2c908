"""What every trainer around TRL shares: progress, sealed checkpoints, resuming, the curve.

A curve holds no clock and nothing that a resumed run counts anew, so that two runs write the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from data_contracts.artifact import write_bytes
from data_contracts.errors import StageError
from data_contracts.progress import Progress
from tasks.models.checkpoints import newest_whole, seal

CURVE = "training.jsonl"
_CLOCKED = ("_runtime", "_per_second")
_COUNTED_ANEW = ("num_tokens", "eval_num_tokens", "epoch", "step", "total_flos")


class ReportProgress(TrainerCallback):  # type: ignore[misc]
    """Tell `progress` after each step, with the latest loss and accuracy as the note."""

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
        shown = {"loss": "loss", "accuracy": "acc", "eval_accuracy": "validation acc"}
        parts = [f"{short} {logs[name]:.2f}" for name, short in shown.items() if name in logs]
        self.note = " ".join(parts) or self.note


class SealCheckpoints(TrainerCallback):  # type: ignore[misc]
    """Mark each checkpoint as whole once all of it is on disk."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Seal the checkpoint that was just written."""
        seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")


def train_resumably(trainer: Trainer, runs_in: Path) -> TrainerState:
    """Train to the end, from the newest whole checkpoint of `runs_in` where there is one; return the last state."""
    trainer.remove_callback(PrinterCallback)  # it prints each log row to stdout
    checkpoint = newest_whole(runs_in)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return trainer.state


def curve_rows(log_history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row a logged step, training and validation figures (`validation_…`) together."""
    rows: dict[int, dict[str, Any]] = {}
    for entry in log_history:
        if "train_runtime" in entry:  # the summary of a whole run
            continue
        row = rows.setdefault(int(entry["step"]), {"step": int(entry["step"])})
        for name, value in entry.items():
            if name not in _COUNTED_ANEW and not name.endswith(_CLOCKED):
                row[f"validation_{name[5:]}" if name.startswith("eval_") else name] = value
    return [rows[step] for step in sorted(rows)]


def write_curve(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `training.jsonl`, a JSON object a logged step."""
    lines = b"".join(orjson.dumps(row, option=orjson.OPT_SORT_KEYS) + b"\n" for row in rows)
    write_bytes(folder / CURVE, lines)


def library_versions() -> dict[str, str]:
    """Versions of the libraries that the numbers of a training depend on."""
    return {name: version(name) for name in ("torch", "transformers", "trl")}
