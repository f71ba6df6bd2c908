"""Params of `finetune.ppo`."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from plumbline.tasks.params.method_sections import EarlyStoppingParams, LoraParams, ValidationParams
from plumbline.tasks.params.on_policy import HackingMonitorParams, KlParams, ShapingParams, VllmParams
from plumbline.tasks.params.optimisation import OWNED_ARGS
from plumbline.tasks.params.section import Section

ARGUMENTS = {
    "learning_rate": "lr",
    "critic_learning_rate": "critic_lr",
    "lr_scheduler_type": "lr_schedule",
    "warmup_steps": "warmup_ratio",
    "weight_decay": "weight_decay",
    "adam_epsilon": "adam_epsilon",
    "max_grad_norm": "max_grad_norm",
    "per_device_train_batch_size": "batch_size",
    "per_device_eval_batch_size": "eval_batch_size",
    "bf16": "bf16",
    "activation_checkpointing": "gradient_checkpointing",
    "episodes": "episodes",
    "episodes_per_update": "episodes_per_update",
    "prompt_tokens_per_update": "prompt_tokens_per_update",
    "ppo_epochs": "ppo_epochs",
    "minibatches": "minibatches",
    "critic_warmup_updates": "critic_warmup_updates",
    "clip_range": "clip_range",
    "value_clip_range": "value_clip_range",
    "value_weight": "value_weight",
    "gamma": "gamma",
    "lam": "lam",
    "whiten_advantages": "whiten_advantages",
    "entropy_weight": "entropy_weight",
    "temperature": "temperature",
    "top_p": "top_p",
    "max_new_tokens": "max_new_tokens",
    "calibration_prompts": "calibration_prompts",
    "kl": "kl",
    "shaping": "shaping",
    "monitors": "monitors",
    "log_every": "log_every",
    "eval_every": "eval_every",
    "best_within_kl": "best_within_kl",
}
"""Arguments of `PPOConfig` and the keys of params that give them."""

DERIVED = {
    "gradient_accumulation_steps": "batch_size",
    "gradient_checkpointing": "gradient_checkpointing",
    "num_train_epochs": "episodes",
    "max_steps": "episodes",
    "logging_steps": "log_every",
    "eval_steps": "eval_every",
    "save_steps": "eval_every",
    "metric_for_best_model": "best_by",
    "vllm": "vllm",
}
"""Arguments that follow from a key of params."""


class PpoParams(Section):
    """Proximal policy optimisation (Schulman et al. 2017), our own trainer.

    One update: a rollout of `episodes_per_update` episodes, then `ppo_epochs` passes over it in `minibatches` optimiser
    steps each. Forward passes an optimiser step (gradient accumulation) follow from `batch_size`.
    """

    episodes: int = Field(
        12_288, ge=1, description="Episodes (sampled responses) of the whole training, in whole updates."
    )
    episodes_per_update: int = Field(
        64, ge=1, le=65536, description="Episodes of one rollout, over all processes; 512 to 1024 for real models."
    )
    prompt_tokens_per_update: int | None = Field(
        None,
        ge=1,
        description="Most prompt tokens of one rollout, which then may have fewer episodes; null: rows alone count.",
    )
    ppo_epochs: int = Field(
        2,
        ge=1,
        le=64,
        description="Passes over a rollout. 4 in summarize_from_feedback_details, 1 in verl and OpenRLHF. On the "
        "sample world 2 passes over more episodes won more often than 4 in about the same time.",
    )
    minibatches: int = Field(
        1, ge=1, le=1024, description="Optimiser steps of a pass; must divide episodes_per_update (times processes)."
    )
    batch_size: int = Field(
        64,
        ge=1,
        le=4096,
        description="Rows a device and forward pass. An optimiser step accumulates as many passes as its minibatch "
        "needs; losses are divided by its global tokens, so this changes memory and time, not the result.",
    )
    eval_batch_size: int = Field(
        256, ge=1, le=8192, description="Rows a forward pass without gradients, and sampled at once."
    )
    lr: float = Field(
        5e-4, gt=0, le=1, description="Peak learning rate of the policy; 1e-6 for real models (verl, OpenRLHF)."
    )
    critic_lr: float = Field(
        1e-3, gt=0, le=1, description="Peak learning rate of the critic; 1e-5 for real models (verl, OpenRLHF)."
    )
    critic_warmup_updates: int = Field(
        0, ge=0, description="First updates, which train the critic alone, so that the first advantages mean something."
    )
    critic_init: Literal["reward", "reference"] = Field(
        "reward",
        description="Weights that the critic starts from: the reward model (usual), or π_ref; its head is new.",
    )
    lr_schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        "linear", description="How both learning rates move after the warm-up (names of transformers)."
    )
    warmup_ratio: float = Field(0.0, ge=0, lt=1, description="Share of the steps over which the rates rise from zero.")
    weight_decay: float = Field(
        0.0, ge=0, le=1, description="AdamW's weight decay, a share of the weight a unit of lr."
    )
    adam_epsilon: float = Field(
        1e-5, gt=0, le=1, description="Epsilon of AdamW (baselines' PPO; summarize_from_feedback_details, note 2.3)."
    )
    max_grad_norm: float = Field(
        1.0,
        gt=0,
        description="Norm beyond which gradients are scaled down, of policy and critic apart (verl, OpenRLHF).",
    )
    clip_range: float = Field(0.2, gt=0, lt=1, description="ε of the clipped policy loss (Schulman et al. 2017).")
    value_clip_range: float | None = Field(
        0.2, gt=0, description="ε of the clipped value loss, in units of the reward; null: not clipped."
    )
    value_weight: float = Field(
        0.5, gt=0, le=100, description="Weight of the value loss; with clipping and AdamW apart it matters little."
    )
    gamma: float = Field(1.0, gt=0, le=1, description="Discount of a later token's reward; 1 is usual for language.")
    lam: float = Field(0.95, ge=0, le=1, description="λ of GAE: 0.95 (summarize_from_feedback_details), 1 (verl).")
    whiten_advantages: bool = Field(True, description="Scale the advantages of a rollout to mean 0 and variance 1.")
    entropy_weight: float = Field(
        0.0, ge=0, le=10, description="Weight of the entropy bonus, a nat per token; 0: none."
    )
    temperature: float = Field(
        1.0, gt=0, le=5, description="Divides logits in sampling, reference and losses alike, so the ratio stays exact."
    )
    top_p: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Nucleus that is sampled from. Below 1 samples are of another distribution than the one in ratio "
        "and KL: both are biased, and tokens outside the nucleus are never unlearned.",
    )
    max_new_tokens: int = Field(48, ge=1, le=32768, description="Longest response in tokens.")
    calibration_prompts: int = Field(
        256, ge=0, description="Completions of π_ref that the reward is normalised on, before training; 0: none."
    )
    sampler: Literal["own", "vllm"] = Field("own", description="What samples rollouts.")
    vllm: VllmParams = Field(default_factory=VllmParams, description="Settings of sampler: vllm.")
    kl: KlParams = Field(default_factory=lambda: KlParams(target=0.15), description="Control of the KL from π_ref.")
    shaping: ShapingParams = Field(default_factory=ShapingParams, description="From a score to rewards of tokens.")
    monitors: HackingMonitorParams = Field(
        default_factory=HackingMonitorParams, description="Watch for reward hacking."
    )
    lora: LoraParams | None = Field(None, description="Train adapters of the policy only; null trains all weights.")
    bf16: bool = Field(
        False, description="bfloat16 autocast over float32 weights. On CPU it pays from about 2M parameters."
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations to save memory; costs about a fifth of the speed."
    )
    log_every: int = Field(1, ge=1, description="Updates between two rows of training.jsonl.")
    eval_every: int = Field(
        16, ge=1, description="Updates between evaluations on the validation split; each leaves a checkpoint."
    )
    validation: ValidationParams = Field(default_factory=ValidationParams, description="Evaluation while training.")
    early_stopping: EarlyStoppingParams | None = Field(None, description="When to end early; null trains to the end.")
    best_by: Literal["win_rate"] = Field(
        "win_rate", description="Validation metric whose best checkpoint becomes the policy: of the held-out judge."
    )
    best_within_kl: float | None = Field(
        0.2,
        gt=0,
        le=10,
        description="Checkpoints above this KL from π_ref (nats per token) become the policy only if there is no "
        "other; null: whatever their KL.",
    )
    trainer_args: dict[str, Any] = Field(
        default_factory=dict,
        description="Any further argument of transformers' TrainingArguments; an unknown one is refused at start.",
    )

    @model_validator(mode="after")
    def _batches_divide(self) -> Self:
        if self.episodes_per_update % self.minibatches:
            raise ValueError(
                f"minibatches ({self.minibatches}) must divide episodes_per_update ({self.episodes_per_update}), so "
                f"that every optimiser step sees as many episodes. Choose another minibatches, or episodes_per_update "
                f"{max(1, round(self.episodes_per_update / self.minibatches)) * self.minibatches}."
            )
        if self.prompt_tokens_per_update is None and self.episodes % self.episodes_per_update:
            whole = -(-self.episodes // self.episodes_per_update) * self.episodes_per_update
            raise ValueError(
                f"episodes ({self.episodes}) must be a multiple of episodes_per_update ({self.episodes_per_update}): "
                f"the last update is whole. Set episodes: {whole}."
            )
        return self

    @model_validator(mode="after")
    def _logs_fall_on_evaluations(self) -> Self:
        if self.eval_every % self.log_every:
            raise ValueError(
                f"log_every ({self.log_every}) must divide eval_every ({self.eval_every}), or a resumed run would log "
                "other averages than an uninterrupted one. Choose log_every among the divisors of eval_every."
            )
        return self

    @model_validator(mode="after")
    def _win_rate_is_measured(self) -> Self:
        if self.validation.prompts == 0:
            raise ValueError("best_by is win_rate, but validation.prompts is 0. Set validation.prompts above 0.")
        return self

    @model_validator(mode="after")
    def _no_dropout(self) -> Self:
        if self.lora is not None and self.lora.dropout > 0:
            raise ValueError(
                "lora.dropout must be 0: PPO's ratio compares the policy that sampled with the one that is trained, "
                "and dropout would make them differ. Regularise with kl.beta."
            )
        return self

    @model_validator(mode="after")
    def _one_way_to_say_a_thing(self) -> Self:
        for name in self.trainer_args:
            if key := (ARGUMENTS | DERIVED).get(name):
                raise ValueError(f"trainer_args.{name}: this one has its own key. Set `{key}` instead.")
            if name in OWNED_ARGS:
                raise ValueError(
                    f"trainer_args.{name}: set by Plumbline, because resuming, determinism, the frozen reference or "
                    "the secrecy of tokens depend on it. Remove it."
                )
        return self
