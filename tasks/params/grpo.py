"""Params of `finetune.grpo`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from plumbline.tasks.params.lengths import FOLLOWS, MOST
from plumbline.tasks.params.method_sections import EarlyStoppingParams, LoraParams
from plumbline.tasks.params.on_policy import ArenaParams, HackingMonitorParams, KlParams
from plumbline.tasks.params.optimisation import EvaluatedOptimisation

GrpoLoss = Literal["dapo", "grpo", "bnpo", "dr_grpo", "cispo", "sapo", "luspo", "vespo"]

_REFUSED = {
    "chat_template_kwargs": "prompts are rendered as everywhere in Plumbline",
    "disable_dropout": "the same weights must give a completion the same log-probability in sampling and training",
    "generation_kwargs": "completions come from Plumbline's sampler or from vLLM",
    "log_completions": "it prints, and does not know replaced prompts",
    "min_p": "log-probabilities would not be those of what was sampled",
    "multi_objective_aggregation": "gains and rewards are added before TRL sees them",
    "num_generations_eval": "evaluations meet π_ref in the arena",
    "repetition_penalty": "log-probabilities would not be those of what was sampled",
    "reward_weights": "set reward_weight",
    "shuffle_dataset": "the order is fixed by the seed, so that a run resumes in its place",
    "top_k": "log-probabilities would not be those of what was sampled",
    "use_transformers_continuous_batching": "completions come from Plumbline's sampler or from vLLM",
}
"""TRL arguments that cannot stand beside what Plumbline does, and why."""


class GrpoKlParams(KlParams):
    """KL control of GRPO."""

    beta_min: float = Field(
        0.02,
        ge=0,
        description="Smallest β that the adaptive mode may reach. On the way to the target it must not fall far: on "
        "the sample world it fell from 0.04 to 0.003, the policy ran past the target, and no β brought it back.",
    )


class GrpoParams(EvaluatedOptimisation):
    """Group relative policy optimisation (Shao et al. 2024) with TRL's GRPOTrainer, on gains from a judge's ranking."""

    config_class: ClassVar[str] = "GRPOConfig"
    elsewhere: ClassVar[Mapping[str, str]] = {
        **EvaluatedOptimisation.elsewhere,
        "generation_batch_size": "steps_per_generation",
        "metric_for_best_model": "best_within_kl",
    }
    refused: ClassVar[Mapping[str, str]] = {**EvaluatedOptimisation.refused, **_REFUSED}

    learning_rate: float = Field(1e-6, gt=0, le=1, description="Peak learning rate of AdamW (TRL's default).")
    adam_epsilon: float = Field(
        1e-8,
        gt=0,
        le=1e-2,
        description="Epsilon of AdamW (torch's and TRL's default). PPO's usual 1e-5 keeps weights that hardly any "
        "token moves from taking whole steps on noise: on the sample world it bears a higher rate and wins more.",
    )
    num_train_epochs: float = Field(
        1.0,
        gt=0,
        le=100,
        description="Passes over the distinct training prompts; a fraction takes that share of them.",
    )
    per_device_train_batch_size: int = Field(
        8, ge=1, le=4096, description="Completions per device and forward pass (TRL's default)."
    )
    num_generations: int = Field(
        8, ge=2, le=64, description="Completions sampled per prompt, which the judge ranks (K); 4 to 8 are usual."
    )
    steps_per_generation: int | None = Field(
        None,
        ge=1,
        le=65_536,
        description="Forward passes that share one rollout, a multiple of gradient_accumulation_steps; null: as many, "
        "one optimiser step, which is on-policy. A rollout holds per_device_train_batch_size x steps_per_generation "
        "completions a device.",
    )
    num_iterations: int = Field(1, ge=1, le=16, description="Times that each rollout is gone through (μ in the paper).")
    max_completion_length: int | None = Field(
        None, ge=1, le=MOST, description=f"Longest sampled completion in tokens; 512 to 1024 is usual. {FOLLOWS}"
    )
    temperature: float = Field(
        1.0,
        gt=0,
        le=2,
        description="Sampling temperature; logits are divided by it in sampling, reference and update alike.",
    )
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus sampling threshold of rollouts; 1 is on-policy.")
    use_vllm: bool = Field(False, description="Sample rollouts with vLLM, through TRL (its arguments vllm_… beside).")
    scale_rewards: Literal["group", "batch", "none"] = Field(
        "group",
        description="What advantages are divided by: the standard deviation of gains in their group (TRL's default), "
        "in the whole rollout, or nothing. With soft gains the rollout's keeps groups of near equals from counting as "
        "much as clear ones: on the sample world a gold win rate of 0.82 against 0.79.",
    )
    reward_weight: float = Field(
        0.0,
        ge=0,
        le=10,
        description="Weight of the reward mixture (such as length and repetition penalties) added to the gains; 0 "
        "leaves it out.",
    )
    resample_zero_variance: int = Field(
        0,
        ge=0,
        le=8,
        description="Times that groups whose candidates all gain the same, which teach nothing, are replaced by other "
        "prompts (dynamic sampling; Yu et al. 2025, DAPO). 0 only counts them.",
    )
    loss_type: GrpoLoss = Field("dapo", description="Policy loss, by TRL's name; dapo is a mean over all tokens.")
    epsilon: float = Field(0.2, gt=0, lt=1, description="Clipping of the probability ratio, ε in the paper.")
    entropy_coef: float = Field(
        0.0, ge=0, le=1, description="Weight of the mean token entropy (nats), which is added to the objective."
    )
    beta: float = Field(
        0.04,
        ge=0,
        le=10,
        description="β, the strength of the tie to π_ref at the start (kl moves it); 0.04 in Shao et al. 2024. It "
        "weighs a nat against gains of unit spread: on the sample world it takes 0.15.",
    )
    kl: GrpoKlParams = Field(default_factory=GrpoKlParams, description="Control of β by the KL from π_ref.")
    lora: LoraParams | None = Field(None, description="Train adapters only; null trains all weights.")
    eval_steps: int = Field(
        50, ge=1, description="Optimiser steps between evaluations on the validation split; each leaves a checkpoint."
    )
    logging_steps: int = Field(5, ge=1, description="Optimiser steps between two rows of training.jsonl.")
    per_device_eval_batch_size: int = Field(
        32, ge=1, le=8192, description="Sequences sampled, or scored without gradients, at once."
    )
    validation: ArenaParams = Field(default_factory=ArenaParams, description="Evaluation while training.")
    early_stopping: EarlyStoppingParams | None = Field(None, description="When to end early; null trains to the end.")
    best_within_kl: float | None = Field(
        0.2,
        gt=0,
        le=10,
        description="The checkpoint with the best held-out win rate becomes the policy; those above this KL from π_ref "
        "(nats per token) only if there is no other. A judge that is close to the one that ranks prefers the farthest. "
        "null: whatever their KL.",
    )
    monitors: HackingMonitorParams = Field(
        default_factory=HackingMonitorParams, description="Watches over reward hacking."
    )

    @property
    def passes_a_rollout(self) -> int:
        """Forward passes that share one rollout, each gone through once."""
        return self.steps_per_generation or self.gradient_accumulation_steps

    @property
    def steps_a_rollout(self) -> int:
        """Optimiser steps from one rollout to the next."""
        return self.passes_a_rollout // self.gradient_accumulation_steps * self.num_iterations

    @property
    def completions_a_rollout(self) -> int:
        """Completions of one rollout on one device."""
        return self.per_device_train_batch_size * self.passes_a_rollout

    @model_validator(mode="after")
    def _rollouts_are_whole_steps(self) -> Self:
        steps, accumulated = self.passes_a_rollout, self.gradient_accumulation_steps
        if steps % accumulated:
            raise ValueError(
                f"steps_per_generation ({steps}) must be a multiple of gradient_accumulation_steps ({accumulated}), "
                f"which make one optimiser step. Set it to {(steps // accumulated + 1) * accumulated}, or to null."
            )
        return self

    @model_validator(mode="after")
    def _rollouts_hold_whole_groups(self) -> Self:
        size, group = self.per_device_train_batch_size, self.num_generations
        if self.completions_a_rollout % group:
            below = size - size % group
            near = [str(near) for near in (below, below + group) if near]
            raise ValueError(
                f"a rollout of {self.completions_a_rollout} completions (per_device_train_batch_size {size} x "
                f"{self.passes_a_rollout} forward passes, from steps_per_generation) does not divide into groups of "
                f"num_generations {group}. Set per_device_train_batch_size to a multiple of {group}, such as "
                f"{' or '.join(near)}, or choose num_generations among {_divisors(self.completions_a_rollout)}."
            )
        return self

    @model_validator(mode="after")
    def _evaluations_fall_between_rollouts(self) -> Self:
        if self.eval_steps % self.steps_a_rollout:
            below = self.eval_steps - self.eval_steps % self.steps_a_rollout
            raise ValueError(
                f"eval_steps ({self.eval_steps}) must be a multiple of the optimiser steps of a rollout "
                f"({self.steps_a_rollout}, from steps_per_generation and num_iterations): a checkpoint holds no "
                f"rollout, so a run resumes only where one is used up. Set it to {below + self.steps_a_rollout}."
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
                "lora.lora_dropout above 0 gives a completion another log-probability in each forward pass, which GRPO "
                "takes for a change of the policy. Set it to 0."
            )
        return self

    @model_validator(mode="after")
    def _vllm_is_asked_once(self) -> Self:
        if self.use_vllm and self.resample_zero_variance:
            raise ValueError(
                "resample_zero_variance needs use_vllm: false, because processes that share a vLLM must ask it equally "
                "often, and each replaces as many groups as it has to. Set one of the two to its default."
            )
        return self


def _divisors(completions: int) -> str:
    return ", ".join(str(size) for size in range(2, 17) if completions % size == 0) or "none up to 16"
