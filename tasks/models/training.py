"""What every training around TRL shares: resuming, failures with a name, the curve.

A curve holds no clock and nothing that a resumed run counts anew, so that two runs write the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson
import torch
from transformers import PrinterCallback, Trainer, TrainerState

from data_contracts.artifact import write_bytes
from data_contracts.errors import StageError
from tasks.models.callbacks import stop_reason
from tasks.models.checkpoints import drop_unfinished, newest_whole, read_state
from tasks.models.full_disk import full_disk_named

CURVE = "training.jsonl"
_CLOCKED = ("_runtime", "_per_second")
_COUNTED_ANEW = ("num_tokens", "eval_num_tokens", "epoch", "step", "total_flos")
_NAMES = {
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "rewards/chosen": "reward_chosen",
    "rewards/rejected": "reward_rejected",
    "logps/chosen": "logps_chosen",
    "logps/rejected": "logps_rejected",
    "logits/chosen": "logits_chosen",
    "logits/rejected": "logits_rejected",
    "mean_token_accuracy": "token_accuracy",
}


def train(trainer: Trainer, runs_in: Path) -> TrainerState:
    """Train to the end, from the newest whole checkpoint of `runs_in` where there is one; return the last state.

    A run that early stopping had ended when it was killed takes no further step: its best checkpoint is loaded.
    Raises `StageError` when the disk or the accelerator's memory is full; no half-written checkpoint stays.
    """
    trainer.remove_callback(PrinterCallback)  # it prints each log row to stdout
    with _named_failures(runs_in):
        checkpoint = newest_whole(runs_in)
        if checkpoint is None or stop_reason(read_state(checkpoint)["stateful_callbacks"]) is None:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            return trainer.state
        trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        trainer._load_best_model()
        return trainer.state


@contextmanager
def _named_failures(runs_in: Path) -> Iterator[None]:
    try:
        with full_disk_named(runs_in):
            yield
    except torch.OutOfMemoryError as error:
        raise StageError(
            "The accelerator ran out of memory. Lower batch_size (and raise gradient_accumulation by the same "
            "factor), set bf16 or gradient_checkpointing, or train adapters (lora)."
        ) from error
    except StageError:
        drop_unfinished(runs_in)
        raise


def curve_rows(log_history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row a logged step, training and validation figures (`validation_…`) together, under Plumbline's names."""
    rows: dict[int, dict[str, Any]] = {}
    for entry in log_history:
        if "train_runtime" in entry:  # the summary of a whole run
            continue
        row = rows.setdefault(int(entry["step"]), {"step": int(entry["step"])})
        for name, value in entry.items():
            if name not in _COUNTED_ANEW and not name.endswith(_CLOCKED):
                row[f"validation_{name[5:]}" if name.startswith("eval_") else _NAMES.get(name, name)] = value
    return [rows[step] for step in sorted(rows)]


def write_curve(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `training.jsonl`, a JSON object a logged step."""
    lines = b"".join(orjson.dumps(row, option=orjson.OPT_SORT_KEYS) + b"\n" for row in rows)
    write_bytes(folder / CURVE, lines)


def library_versions(*others: str) -> dict[str, str]:
    """Versions of the libraries that the numbers of a training depend on."""
    return {name: version(name) for name in ("torch", "transformers", "trl", *others)}
