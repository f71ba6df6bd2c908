"""Params of `finetune.ppo`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from plumbline.tasks.params.lengths import FOLLOWS, MOST
from plumbline.tasks.params.method_sections import EarlyStoppingParams, LoraParams, ValidationParams
from plumbline.tasks.params.on_policy import HackingMonitorParams, KlParams, ShapingParams, VllmParams
from plumbline.tasks.params.optimisation import OWNED_ARGS, LrScheduler, WarmupSteps, require_dividing_logs
from plumbline.tasks.params.trainer_section import OWNED, TrainerSection


class PpoKlParams(KlParams):
    """KL control of PPO."""

    horizon: int = Field(
        2048,
        ge=1,
        description="Episodes in which an error of 20 % or more moves β by about 20 %. At 512 episodes an update this "
        "is 5 % a step. Ziegler et al. took 10,000 of 2 million episodes; 1,000 hardly moved β in the sample "
        "world's 3,840.",
    )


class PpoParams(TrainerSection):
    """Proximal policy optimisation (Schulman et al. 2017), our own trainer.

    One update: a rollout of `episodes_per_update` episodes, then `num_ppo_epochs` passes over it in `num_mini_batches`
    optimiser steps each. Forward passes an optimiser step (gradient accumulation) follow from
    `per_device_train_batch_size`. Names are those of TRL's last PPOConfig; logged rows and evaluations come every so
    many updates, as they did there.
    """

    elsewhere: ClassVar[Mapping[str, str]] = {
        "activation_checkpointing": "gradient_checkpointing",
        "gradient_accumulation_steps": "per_device_train_batch_size",
        "max_steps": "total_episodes",
        "num_train_epochs": "total_episodes",
        "save_steps": "eval_steps",
    }
    refused: ClassVar[Mapping[str, str]] = dict.fromkeys(OWNED_ARGS, OWNED)

    total_episodes: int = Field(
        51_200, ge=1, description="Episodes (sampled responses) of the whole training, in whole updates."
    )
    episodes_per_update: int = Field(
        512, ge=1, le=65536, description="Episodes of one rollout, over all processes; 512 to 1024 is usual."
    )
    prompt_tokens_per_update: int | None = Field(
        None,
        ge=1,
        description="Most prompt tokens of one rollout, which then may have fewer episodes; null: rows alone count.",
    )
    num_ppo_epochs: int = Field(
        4,
        ge=1,
        le=64,
        description="Passes over a rollout; 4 in TRL and summarize_from_feedback_details, 1 in verl and OpenRLHF. On "
        "the sample world 2 passes over more episodes won more often than 4 in about the same time.",
    )
    num_mini_batches: int = Field(
        1, ge=1, le=1024, description="Optimiser steps of a pass; must divide episodes_per_update (times processes)."
    )
    per_device_train_batch_size: int = Field(
        8,
        ge=1,
        le=4096,
        description="Rows per device and forward pass. An optimiser step accumulates as many passes as its minibatch "
        "needs; losses are divided by its global tokens, so this changes memory and time, not the result.",
    )
    per_device_eval_batch_size: int = Field(
        32, ge=1, le=8192, description="Rows per forward pass without gradients, and sampled at once."
    )
    learning_rate: float = Field(
        5e-6,
        gt=0,
        le=1,
        description="Peak learning rate of the policy; 5e-6 to 1e-5 from 7B on, 1e-6 in verl, 3e-6 in TRL.",
    )
    critic_learning_rate: float = Field(
        1e-5, gt=0, le=1, description="Peak learning rate of the critic (verl, OpenRLHF)."
    )
    critic_warmup_updates: int = Field(
        0, ge=0, description="First updates, which train the critic alone, so that the first advantages mean something."
    )
    critic_init: Literal["reward", "reference"] = Field(
        "reward",
        description="Weights that the critic starts from: the reward model (usual), or π_ref; its head is new.",
    )
    lr_scheduler_type: LrScheduler = Field("linear", description="How both learning rates move after the warm-up.")
    warmup_steps: WarmupSteps = Field(
        0.0,
        ge=0,
        description="Steps over which the rates rise from zero: below 1 a share of all steps, from 1 on their number.",
    )
    weight_decay: float = Field(
        0.0, ge=0, le=1, description="AdamW's weight decay, a share of the weight a unit of learning rate."
    )
    adam_epsilon: float = Field(
        1e-5, gt=0, le=1, description="Epsilon of AdamW (baselines' PPO; summarize_from_feedback_details, note 2.3)."
    )
    max_grad_norm: float = Field(
        1.0,
        gt=0,
        description="Norm beyond which gradients are scaled down, of policy and critic apart (verl, OpenRLHF).",
    )
    cliprange: float = Field(0.2, gt=0, lt=1, description="ε of the clipped policy loss (Schulman et al. 2017).")
    cliprange_value: float | None = Field(
        0.2, gt=0, description="ε of the clipped value loss, in units of the reward; null: not clipped."
    )
    vf_coef: float = Field(
        0.5, gt=0, le=100, description="Weight of the value loss; with clipping and AdamW apart it matters little."
    )
    gamma: float = Field(1.0, gt=0, le=1, description="Discount of a later token's reward; 1 is usual for language.")
    lam: float = Field(0.95, ge=0, le=1, description="λ of GAE: 0.95 (summarize_from_feedback_details), 1 (verl).")
    whiten_advantages: bool = Field(True, description="Scale the advantages of a rollout to mean 0 and variance 1.")
    entropy_coef: float = Field(0.0, ge=0, le=10, description="Weight of the entropy bonus, a nat per token; 0: none.")
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
    max_completion_length: int | None = Field(
        None, ge=1, le=MOST, description=f"Longest response in tokens; 512 to 1024 is usual. {FOLLOWS}"
    )
    calibration_prompts: int = Field(
        256, ge=0, description="Completions of π_ref that the reward is normalised on, before training; 0: none."
    )
    use_vllm: bool = Field(False, description="Sample rollouts with vLLM, not with Plumbline's own sampler.")
    vllm: VllmParams = Field(default_factory=VllmParams, description="Settings of use_vllm: true.")
    beta: float = Field(0.04, ge=0, le=10, description="β at the start: reward lost per nat. 0.01 to 0.05 is usual.")
    kl: PpoKlParams = Field(default_factory=PpoKlParams, description="Control of β by the KL from π_ref.")
    shaping: ShapingParams = Field(default_factory=ShapingParams, description="From a score to rewards of tokens.")
    monitors: HackingMonitorParams = Field(
        default_factory=HackingMonitorParams, description="Watch for reward hacking."
    )
    lora: LoraParams | None = Field(None, description="Train adapters of the policy only; null trains all weights.")
    bf16: bool = Field(
        False, description="bfloat16 autocast over float32 weights. On CPU it pays from about 2M parameters."
    )
    gradient_checkpointing: bool = Field(
        True, description="Recompute activations to save memory (TRL's default); costs about a fifth of the speed."
    )
    logging_steps: int = Field(1, ge=1, description="Updates between two rows of training.jsonl.")
    eval_steps: int = Field(
        16, ge=1, description="Updates between evaluations on the validation split; each leaves a checkpoint."
    )
    validation: ValidationParams = Field(default_factory=ValidationParams, description="Evaluation while training.")
    early_stopping: EarlyStoppingParams | None = Field(None, description="When to end early; null trains to the end.")
    metric_for_best_model: Literal["win_rate"] = Field(
        "win_rate", description="Validation metric whose best checkpoint becomes the policy: of the held-out judge."
    )
    best_within_kl: float | None = Field(
        0.2,
        gt=0,
        le=10,
        description="Checkpoints above this KL from π_ref (nats per token) become the policy only if there is no "
        "other; null: whatever their KL.",
    )

    @model_validator(mode="after")
    def _batches_divide(self) -> Self:
        update, parts, total = self.episodes_per_update, self.num_mini_batches, self.total_episodes
        if update % parts:
            raise ValueError(
                f"num_mini_batches ({parts}) must divide episodes_per_update ({update}), so that every optimiser step "
                f"sees as many episodes. Choose another num_mini_batches, or episodes_per_update "
                f"{max(1, round(update / parts)) * parts}."
            )
        if self.prompt_tokens_per_update is None and total % update:
            raise ValueError(
                f"total_episodes ({total}) must be a multiple of episodes_per_update ({update}): the last update is "
                f"whole. Set total_episodes: {-(-total // update) * update}."
            )
        return self

    @model_validator(mode="after")
    def _logs_fall_on_evaluations(self) -> Self:
        require_dividing_logs(self.logging_steps, self.eval_steps)
        return self

    @model_validator(mode="after")
    def _win_rate_is_measured(self) -> Self:
        if self.validation.prompts == 0:
            raise ValueError(
                "metric_for_best_model is win_rate, but validation.prompts is 0. Set validation.prompts above 0."
            )
        return self

    @model_validator(mode="after")
    def _beta_can_move(self) -> Self:
        self.kl.require_movable(self.beta)
        return self

    @model_validator(mode="after")
    def _no_dropout(self) -> Self:
        if self.lora is not None and self.lora.lora_dropout > 0:
            raise ValueError(
                "lora.lora_dropout must be 0: PPO's ratio compares the policy that sampled with the one that is "
                "trained, and dropout would make them differ. Regularise with beta."
            )
        return self
