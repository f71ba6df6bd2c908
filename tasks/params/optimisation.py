"""Params that every trainer around TRL shares, and the TRL arguments that cannot stand beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from plumbline.tasks.params.trainer_section import OWNED, TrainerSection

OWNED_ARGS = frozenset(
    {
        "assistant_only_loss",
        "chat_template_path",
        "completion_only_loss",
        "data_seed",
        "dataset_kwargs",
        "dataset_num_proc",
        "disable_tqdm",
        "eos_token",
        "eval_delay",
        "eval_on_start",
        "eval_strategy",
        "greater_is_better",
        "hub_model_id",
        "hub_token",
        "push_to_hub",
        "ignore_data_skip",
        "ld_alpha",
        "load_best_model_at_end",
        "logging_nan_inf_filter",
        "logging_strategy",
        "model_init_kwargs",
        "output_dir",
        "packing",
        "pad_token",
        "precompute_ref_batch_size",
        "precompute_ref_log_probs",
        "remove_unused_columns",
        "report_to",
        "restore_callback_states_from_checkpoint",
        "resume_from_checkpoint",
        "save_only_model",
        "save_strategy",
        "save_total_limit",
        "seed",
        "sync_ref_model",
        "truncation_mode",
        "trust_remote_code",
        "use_cache",
    }
)
"""TRL arguments that resuming, determinism or the frozen reference depend on: not to be set."""


LrScheduler = Literal["linear", "cosine", "constant", "constant_with_warmup"]
"""How a learning rate moves, by the names of transformers."""

SamplingStrategy = Literal["random", "group_by_length"]
"""The order of training examples, by the names of transformers."""


def whole_steps(warmup: float) -> float:
    """Refuse a number of warm-up steps that is not whole; below 1 it is a share of the steps."""
    if warmup >= 1 and warmup != int(warmup):
        raise ValueError(f"from 1 on it is a number of steps, which is whole; found {warmup:g}. Round it.")
    return warmup


WarmupSteps = Annotated[float, AfterValidator(whole_steps)]
"""A share of the steps below 1, a number of steps from 1 on, as in transformers."""


class Optimisation(TrainerSection):
    """What every trainer shares."""

    elsewhere: ClassVar[Mapping[str, str]] = {"activation_checkpointing": "gradient_checkpointing"}
    refused: ClassVar[Mapping[str, str]] = dict.fromkeys(OWNED_ARGS, OWNED)

    learning_rate: float = Field(gt=0, le=1, description="Peak learning rate of AdamW.")
    num_train_epochs: float = Field(
        gt=0, le=100, description="Passes over the examples; a fraction stops within a pass."
    )
    per_device_train_batch_size: int = Field(
        8, ge=1, le=4096, description="Examples per device and forward pass (TRL's default)."
    )
    gradient_accumulation_steps: int = Field(1, ge=1, le=4096, description="Forward passes an optimiser step.")
    warmup_steps: WarmupSteps = Field(
        0.05,
        ge=0,
        description="Steps over which the rate rises from zero: below 1 a share of all steps, from 1 on their number.",
    )
    lr_scheduler_type: LrScheduler = Field("linear", description="How the learning rate moves after the warm-up.")
    weight_decay: float = Field(
        0.0, ge=0, le=1, description="AdamW's weight decay, a share of the weight a unit of learning rate (TRL's)."
    )
    adam_epsilon: float = Field(
        1e-8, gt=0, le=1e-2, description="Epsilon of AdamW (torch's and TRL's default); 1e-5 is usual in PPO."
    )
    max_length: int = Field(
        1024,
        ge=8,
        description="Longest prompt plus completion in tokens (TRL's default); the model's context caps it. "
        "Longer examples are set aside and counted, never truncated.",
    )
    train_sampling_strategy: SamplingStrategy = Field(
        "random",
        description="random, or group_by_length: examples of similar length in a batch, in an order fixed by seed and "
        "epoch. That is less padding, so less time where lengths differ much. Memory is that of the longest batch "
        "either way. Batches are then less alike: where length tells the kind of request, as in the sample world, the "
        "model learns a little less.",
    )
    logging_steps: int = Field(10, ge=1, description="Optimiser steps between two rows of training.jsonl.")
    bf16: bool = Field(
        False, description="bfloat16 autocast over float32 weights. On CPU it pays from about 2M parameters."
    )
    gradient_checkpointing: bool = Field(
        True,
        description="Recompute activations to save memory (TRL's default); costs about a fifth of the speed.",
    )

    @property
    def groups_by_length(self) -> bool:
        """True if a batch holds examples of similar length."""
        return self.train_sampling_strategy == "group_by_length"


class EvaluatedOptimisation(Optimisation):
    """A training that is evaluated on the validation split as it goes, each time leaving a checkpoint."""

    elsewhere: ClassVar[Mapping[str, str]] = {**Optimisation.elsewhere, "save_steps": "eval_steps"}

    eval_steps: int = Field(
        100, ge=1, description="Optimiser steps between evaluations on the validation split; each leaves a checkpoint."
    )
    per_device_eval_batch_size: int = Field(
        8, ge=1, le=8192, description="Sequences per device and forward pass without gradients (TRL's default)."
    )

    @model_validator(mode="after")
    def _logs_fall_on_evaluations(self) -> Self:
        require_dividing_logs(self.logging_steps, self.eval_steps)
        return self


def require_dividing_logs(logging_steps: int, eval_steps: int) -> None:
    """Raise `ValueError` unless logged rows end where evaluations do."""
    if eval_steps % logging_steps:
        raise ValueError(
            f"logging_steps ({logging_steps}) must divide eval_steps ({eval_steps}), or a resumed run would log other "
            "averages than an uninterrupted one. Choose logging_steps among the divisors of eval_steps."
        )
