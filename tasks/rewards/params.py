"""Params of the reward model: section `reward`."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from data_contracts.params import Section

OWNED_ARGS = {
    "output_dir": "checkpoints go to the stage's work folder. Remove it",
    "seed": "the run's seed decides. Set `seed`",
    "data_seed": "the run's seed decides. Set `seed`",
    "num_train_epochs": "set `reward.epochs`",
    "learning_rate": "set `reward.learning_rate`",
    "per_device_train_batch_size": "set `reward.batch_size`",
    "weight_decay": "set `reward.weight_decay`",
    "warmup_steps": "set `reward.warmup_ratio`",
    "max_length": "set `reward.max_length`",
    "eval_strategy": "the best checkpoint is found by it. Set `reward.evaluations`",
    "eval_steps": "set `reward.evaluations`",
    "save_strategy": "resuming depends on it. Set `reward.evaluations`",
    "save_steps": "resuming depends on it. Set `reward.evaluations`",
    "save_only_model": "resuming depends on it. Remove it",
    "save_total_limit": "resuming depends on it. Remove it",
    "logging_steps": "the curve of a resumed run depends on it. Set `reward.evaluations`",
    "logging_strategy": "the curve of a resumed run depends on it. Set `reward.evaluations`",
    "load_best_model_at_end": "the best checkpoint by validation accuracy is kept. Remove it",
    "metric_for_best_model": "the best checkpoint by validation accuracy is kept. Remove it",
    "greater_is_better": "the best checkpoint by validation accuracy is kept. Remove it",
    "ignore_data_skip": "resuming depends on it. Remove it",
    "resume_from_checkpoint": "a killed run resumes by itself. Remove it",
    "remove_unused_columns": "the columns are Plumbline's. Remove it",
    "report_to": "figures go to training.jsonl and MLflow. Remove it",
    "disable_tqdm": "progress is shown by Plumbline. Remove it",
    "model_init_kwargs": "the model is loaded by Plumbline. Remove it",
    "trust_remote_code": "set it beside `reference.base`",
    "chat_template_path": "the reward model reads the template of the model it starts from. Remove it",
    "eos_token": "the end token is that of the chat template. Remove it",
    "pad_token": "padding is told from the end token by Plumbline. Remove it",
    "center_rewards_coefficient": "set `reward.center_rewards`",
}
"""TRL arguments that params have a key for, or that resuming and determinism depend on, and what to do instead."""


class RewardThresholds(Section):
    """What a reward model must reach on held-out pairs to pass its audit."""

    min_accuracy: float = Field(
        0.55,
        ge=0,
        le=1,
        description="Least accuracy on held-out pairs: the lower end of its 95 % interval must reach it. "
        "0.5 is a coin; the default asks for evidence of more.",
    )
    max_ece: float = Field(
        0.15,
        ge=0,
        le=0.5,
        description="Largest expected calibration error of the confidence max(p, 1 - p), p = sigmoid(margin). "
        "A coin that is sure of itself has 0.5.",
    )
    max_length_correlation: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Largest absolute Spearman correlation of reward and response length (characters). "
        "The default is ours: a monotone relation that explains about a quarter of the rank variance.",
    )
    min_accuracy_shorter_chosen: float = Field(
        0.35,
        ge=0,
        le=1,
        description="Least accuracy on the pairs whose chosen response is the shorter one; a model that "
        "only prefers length has 0.",
    )


class RewardParams(Section):
    """A Bradley-Terry reward model on the curated pairs, and the audit it must pass."""

    init: Literal["reference", "base"] = Field(
        "reference", description="The model whose weights it starts from: π_ref, or the base before SFT."
    )
    epochs: float = Field(2.0, gt=0, le=100, description="Passes over the training pairs.")
    learning_rate: float = Field(
        1e-3,
        gt=0,
        le=1,
        description="Peak learning rate of AdamW, falling linearly to 0. The default is for the tiny model; "
        "1e-5 is usual from 1B parameters on.",
    )
    batch_size: int = Field(32, ge=1, le=4096, description="Pairs a device and optimiser step.")
    max_length: int | None = Field(
        None,
        ge=8,
        description="Longest prompt plus response, tokens; pairs beyond it are set aside and counted. "
        "None: the context of the model.",
    )
    weight_decay: float = Field(
        0.0, ge=0, le=1, description="AdamW's weight decay, a share of the weight a unit of lr."
    )
    warmup_ratio: float = Field(0.05, ge=0, lt=1, description="Share of the steps over which the learning rate rises.")
    center_rewards: float | None = Field(
        0.01,
        ge=0,
        le=10,
        description="Weight of the squared sum of both rewards, which keeps rewards around 0 "
        "(Eisenstein et al. 2023, eq. 2, their value). None: off.",
    )
    evaluations: int = Field(
        4, ge=1, le=100, description="Evaluations (and checkpoints) over the training, the last one at its end."
    )
    scoring_batch_size: int = Field(64, ge=1, le=8192, description="Responses a forward pass when scoring.")
    audit: RewardThresholds = Field(default_factory=RewardThresholds, description="Thresholds of the audit.")
    trainer_args: dict[str, Any] = Field(
        default_factory=dict,
        description="Any further argument of TRL's RewardConfig, by its own name; an unknown one is refused at start.",
    )

    @model_validator(mode="after")
    def _one_way_to_say_a_thing(self) -> Self:
        for name in self.trainer_args:
            if name in OWNED_ARGS:
                raise ValueError(f"trainer_args.{name} cannot be set here: {OWNED_ARGS[name]}.")
        return self
