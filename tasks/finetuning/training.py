"""What SFT and DPO share around TRL: arguments, resuming a run that early stopping ended, failures with a name."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import Trainer, TrainerState, TrainingArguments

from data_contracts.errors import ParamsError, StageError
from tasks.finetuning.params import Optimisation
from tasks.models.checkpoints import newest_whole, read_state
from tasks.models.trainer_args import check_trainer_args
from tasks.models.training import curve_rows, train_resumably

_KEPT_CHECKPOINTS = 3  # the last, the one before it should the last be damaged, and the best
_LOW_DISK_BYTES = 1 << 20
_CURVE_NAMES = {
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


def trainer_config(config_class: type[TrainingArguments], where: str, params: Optimisation, **own: Any) -> Any:
    """Build TRL's config from params; `own` are the arguments of one method.

    Raises `ParamsError` naming `where` for an argument that TRL does not know, or a value that it refuses.
    """
    check_trainer_args(config_class, params.trainer_args, f"{where}.trainer_args")
    arguments = {
        "learning_rate": params.lr,
        "num_train_epochs": params.epochs,
        "per_device_train_batch_size": params.batch_size,
        "gradient_accumulation_steps": params.gradient_accumulation,
        "warmup_steps": params.warmup_ratio,
        "lr_scheduler_type": params.lr_schedule,
        # TRL's defaults for both are on, which costs 1.5 times the time on CPU
        "bf16": params.bf16,
        "activation_checkpointing": params.gradient_checkpointing,
        "logging_steps": params.log_every,
        # transformers would replace a loss that is not a number by an average and train on
        "logging_nan_inf_filter": False,
        # goes into the saved config.json; the trainers pass use_cache=False to each forward themselves
        "use_cache": True,
        "disable_tqdm": True,
        "report_to": "none",
        "dataloader_pin_memory": torch.cuda.is_available(),
        "save_strategy": "steps",
        "save_total_limit": _KEPT_CHECKPOINTS,
        "restore_callback_states_from_checkpoint": True,
    }
    try:
        return config_class(**(arguments | own | params.trainer_args))
    except (ValueError, TypeError) as error:
        raise ParamsError(f"{where}: TRL refuses these arguments: {error}") from error


def train(trainer: Trainer, runs_in: Path) -> TrainerState:
    """Train to the end, from the newest whole checkpoint of `runs_in` where there is one; return the last state.

    A run that early stopping had ended when it was killed takes no further step: its best checkpoint is loaded.
    """
    with named_failures(runs_in):
        checkpoint = newest_whole(runs_in)
        if checkpoint is None or stop_reason(read_state(checkpoint)["stateful_callbacks"]) is None:
            return train_resumably(trainer, runs_in)
        trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        trainer._load_best_model()
        return trainer.state


def stop_reason(stateful_callbacks: Mapping[str, Any]) -> str | None:
    """Why early stopping ended a run, from the callbacks' states of its last checkpoint; None if it did not."""
    patience = stateful_callbacks.get("Patience")
    reason: str | None = patience["attributes"]["reason"] if patience else None
    return reason


@contextmanager
def named_failures(folder: Path) -> Iterator[None]:
    """Turn what torch and safetensors raise on a full disk or full memory into errors that say what to do."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise StageError(
            "The accelerator ran out of memory. Lower batch_size (and raise gradient_accumulation by the same "
            "factor), set bf16 or gradient_checkpointing, or train adapters (lora)."
        ) from error
    except (RuntimeError, SafetensorError) as error:
        # both libraries lose the errno of a failed write
        if "No space left" in str(error) or shutil.disk_usage(folder).free < _LOW_DISK_BYTES:
            raise OSError(errno.ENOSPC, f"no space left for checkpoints ({error})") from error
        raise


def named_rows(log_history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the curve, one a logged step, under this project's names in place of TRL's."""
    return [{_CURVE_NAMES.get(name, name): value for name, value in row.items()} for row in curve_rows(log_history)]
