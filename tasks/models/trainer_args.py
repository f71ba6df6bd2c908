"""Params to a TRL config: the shared keys, a method's own, and `trainer_args`, refused at once where TRL knows none."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from plumbline.data_contracts.errors import ParamsError
from plumbline.tasks.models.processes import several
from plumbline.tasks.params.optimisation import EvaluatedOptimisation, Optimisation

if TYPE_CHECKING:
    from transformers import TrainingArguments

KEPT_CHECKPOINTS = 3  # the last, the one before it should the last be damaged, and the best


def check_trainer_args(config_class: type, given: Mapping[str, Any], where: str) -> None:
    """Raise `ParamsError` for arguments that a TRL config does not know, naming the nearest one that it does.

    `where` is the key in params, such as `reward.trainer_args`.
    """
    names = [field.name for field in fields(config_class)]
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise ParamsError(f"{where}: " + "; ".join(f"no argument {name!r}{_nearest(name, names)}" for name in unknown))


def must_name_cpu(bf16: bool) -> bool:
    """True if transformers needs the argument that names the CPU.

    Without an accelerator it takes bf16 for a mistake, and accelerate each process of torchrun for one alone, so that
    all of them would train and write the same.
    """
    import torch

    return (bf16 or several()) and not torch.accelerator.is_available()


def trainer_config(config_class: type[TrainingArguments], where: str, params: Optimisation, **own: Any) -> Any:
    """Build TRL's config from params; `own` are the arguments of one method.

    Raises `ParamsError` naming `where` for an argument that TRL does not know, or a value that it refuses.
    """
    check_trainer_args(config_class, params.trainer_args, f"{where}.trainer_args")
    arguments = _shared(params) | (_evaluated(params) if isinstance(params, EvaluatedOptimisation) else {})
    if "max_length" not in {field.name for field in fields(config_class)}:
        del arguments["max_length"]  # GRPO limits completions instead
    try:
        with warnings.catch_warnings():
            # transformers renames it; TRL 1.16 knows both names, and the default of one of them is on
            warnings.filterwarnings("ignore", message="`gradient_checkpointing` is deprecated", category=FutureWarning)
            return config_class(**(arguments | own | params.trainer_args))
    except (ValueError, TypeError) as error:
        raise ParamsError(f"{where}: TRL refuses these arguments: {error}") from error


def _shared(params: Optimisation) -> dict[str, Any]:
    import torch

    return {
        "learning_rate": params.lr,
        "num_train_epochs": params.epochs,
        "per_device_train_batch_size": params.batch_size,
        "gradient_accumulation_steps": params.gradient_accumulation,
        "warmup_steps": params.warmup_ratio,
        "lr_scheduler_type": params.lr_schedule,
        "weight_decay": params.weight_decay,
        "adam_epsilon": params.adam_epsilon,
        # TRL's defaults for both are on, which costs 1.5 times the time on CPU
        "bf16": params.bf16,
        "activation_checkpointing": params.gradient_checkpointing,
        "logging_steps": params.log_every,
        # transformers would replace a loss that is not a number by an average and train on
        "logging_nan_inf_filter": False,
        # examples that do not fit were set aside; TRL would cut them
        "max_length": None,
        "use_cpu": must_name_cpu(params.bf16),
        "disable_tqdm": True,
        "report_to": "none",
        "dataloader_pin_memory": torch.cuda.is_available(),
        "save_strategy": "steps",
        "save_total_limit": KEPT_CHECKPOINTS,
        "restore_callback_states_from_checkpoint": True,
    }


def _evaluated(params: EvaluatedOptimisation) -> dict[str, Any]:
    return {
        "per_device_eval_batch_size": params.eval_batch_size,
        "eval_strategy": "steps",
        "eval_steps": params.eval_every,
        "save_steps": params.eval_every,
        "load_best_model_at_end": True,
        "greater_is_better": True,
    }


def _nearest(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f", did you mean {close[0]!r}?" if close else " (see the documentation of TRL's config class)"
