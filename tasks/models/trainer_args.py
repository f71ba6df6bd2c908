"""Params to a trainer's config: fields that bear the name of one of its arguments, further arguments, and ours."""

from __future__ import annotations

import warnings
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plumbline.data_contracts.errors import ParamsError
from plumbline.tasks.models.processes import several
from plumbline.tasks.params.optimisation import EvaluatedOptimisation, Optimisation
from plumbline.tasks.params.trainer_section import TrainerSection

if TYPE_CHECKING:
    from transformers import TrainingArguments

KEPT_CHECKPOINTS = 3  # the last, the one before it should the last be damaged, and the best

_MEANT_OTHERWISE = frozenset(
    {
        "gradient_checkpointing",  # transformers renames it
        "max_length",  # examples that do not fit were set aside; TRL would cut them
        "train_sampling_strategy",  # the order is our own (`length_groups`), which a resumed run repeats
    }
)
"""Fields of params that reach a trainer on another way than by the argument of their name."""


def must_name_cpu(bf16: bool) -> bool:
    """True if transformers needs the argument that names the CPU.

    Without an accelerator it takes bf16 for a mistake, and accelerate each process of torchrun for one alone, so that
    all of them would train and write the same.
    """
    import torch

    return (bf16 or several()) and not torch.accelerator.is_available()


def same_named(config_class: type, params: TrainerSection) -> dict[str, Any]:
    """The fields of params that are arguments of a config class, by name."""
    names = {field.name for field in fields(config_class)} - _MEANT_OTHERWISE
    return {name: getattr(params, name) for name in type(params).model_fields if name in names}


def trainer_config(
    config_class: type[TrainingArguments], where: str, params: Optimisation, folder: Path, seed: int, **own: Any
) -> Any:
    """Build TRL's config of a run in `folder` from params; `own` are the arguments of one method.

    Raises `ParamsError` naming `where` for an argument that TRL refuses.
    """
    arguments = same_named(config_class, params) | _shared(params)
    # without data_seed the order of examples would hang on the global generator at `train()`
    arguments |= {"output_dir": str(folder), "seed": seed, "data_seed": seed}
    if isinstance(params, EvaluatedOptimisation):
        arguments |= _evaluated(params)
    if "max_length" in {field.name for field in fields(config_class)}:
        arguments["max_length"] = None
    try:
        with warnings.catch_warnings():
            # transformers renames it; TRL 1.16 knows both names, and the default of one of them is on
            warnings.filterwarnings("ignore", message="`gradient_checkpointing` is deprecated", category=FutureWarning)
            return config_class(**(arguments | own | params.further_arguments))
    except (ValueError, TypeError) as error:
        raise ParamsError(f"{where}: TRL refuses these arguments: {error}") from error


def _shared(params: Optimisation) -> dict[str, Any]:
    import torch

    return {
        # TRL's default is on; with that of bf16 it costs 1.5 times the time on CPU
        "activation_checkpointing": params.gradient_checkpointing,
        # transformers would replace a loss that is not a number by an average and train on
        "logging_nan_inf_filter": False,
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
        "eval_strategy": "steps",
        "save_steps": params.eval_steps,
        "load_best_model_at_end": True,
        "greater_is_better": True,
    }
