"""Params that every trainer around TRL shares, and the TRL arguments that cannot stand beside them."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from plumbline.tasks.params.section import Section

OWN_KEYS = {
    "learning_rate": "lr",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "gradient_accumulation_steps": "gradient_accumulation",
    "warmup_steps": "warmup_ratio",
    "lr_scheduler_type": "lr_schedule",
    "weight_decay": "weight_decay",
    "adam_epsilon": "adam_epsilon",
    "max_length": "max_length",
    "bf16": "bf16",
    "train_sampling_strategy": "group_by_length",
    "gradient_checkpointing": "gradient_checkpointing",
    "activation_checkpointing": "gradient_checkpointing",
    "logging_steps": "log_every",
}
"""TRL arguments that have a key of their own in params: one way to say a thing."""

EVALUATED_KEYS = {
    "per_device_eval_batch_size": "eval_batch_size",
    "eval_steps": "eval_every",
    "save_steps": "eval_every",
}
"""Those of a training that is evaluated as it goes."""

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


class Optimisation(Section):
    """What every trainer shares."""

    lr: float = Field(gt=0, le=1, description="Peak learning rate of AdamW.")
    epochs: float = Field(gt=0, le=100, description="Passes over the examples; a fraction stops within a pass.")
    batch_size: int = Field(16, ge=1, le=4096, description="Examples a device and forward pass.")
    gradient_accumulation: int = Field(1, ge=1, le=4096, description="Forward passes an optimiser step.")
    warmup_ratio: float = Field(0.05, ge=0, lt=1, description="Share of the steps over which the rate rises from zero.")
    lr_schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        "linear", description="How the learning rate moves after the warm-up (names of transformers)."
    )
    weight_decay: float = Field(
        0.0, ge=0, le=1, description="AdamW's weight decay, a share of the weight a unit of lr (TRL's default)."
    )
    adam_epsilon: float = Field(
        1e-8, gt=0, le=1e-2, description="Epsilon of AdamW (torch's and TRL's default); 1e-5 is usual in PPO."
    )
    max_length: int = Field(
        512,
        ge=8,
        description="Longest prompt plus completion in tokens; the model's context caps it. "
        "Longer examples are set aside and counted, never truncated.",
    )
    group_by_length: bool = Field(
        False,
        description="Put examples of similar length into a batch, in an order fixed by seed and epoch: less padding, "
        "so less time where lengths differ much. Memory is that of the longest batch either way. Batches are then less "
        "alike: where length tells the kind of request, as in the sample world, the model learns a little less.",
    )
    log_every: int = Field(20, ge=1, description="Optimiser steps between two rows of training.jsonl.")
    bf16: bool = Field(
        False, description="bfloat16 autocast over float32 weights. On CPU it pays from about 2M parameters."
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations to save memory; costs about a fifth of the speed."
    )
    trainer_args: dict[str, Any] = Field(
        default_factory=dict,
        description="Any further argument of TRL's config class, by its own name; an unknown one is refused at start.",
    )

    @model_validator(mode="after")
    def _one_way_to_say_a_thing(self) -> Self:
        for name in self.trainer_args:
            if name in OWNED_ARGS:
                raise ValueError(
                    f"trainer_args.{name}: set by Plumbline, because resuming, determinism, the frozen "
                    f"reference or the secrecy of tokens depend on it. Remove it."
                )
            if key := self._own_keys().get(name):
                raise ValueError(f"trainer_args.{name}: this one has its own key. Set `{key}` instead.")
        return self

    @classmethod
    def _own_keys(cls) -> dict[str, str]:
        return OWN_KEYS


class EvaluatedOptimisation(Optimisation):
    """A training that is evaluated on the validation split as it goes, each time leaving a checkpoint."""

    eval_every: int = Field(
        100, ge=1, description="Optimiser steps between evaluations on the validation split; each leaves a checkpoint."
    )
    eval_batch_size: int = Field(64, ge=1, le=8192, description="Sequences a forward pass without gradients.")

    @model_validator(mode="after")
    def _logs_fall_on_evaluations(self) -> Self:
        if self.eval_every % self.log_every:
            raise ValueError(
                f"log_every ({self.log_every}) must divide eval_every ({self.eval_every}), or a resumed run would "
                f"log other averages than an uninterrupted one. Choose log_every among the divisors of eval_every."
            )
        return self

    @classmethod
    def _own_keys(cls) -> dict[str, str]:
        return OWN_KEYS | EVALUATED_KEYS
