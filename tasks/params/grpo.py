"""Params of `finetune.grpo`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from plumbline.tasks.params.method_sections import EarlyStoppingParams, LoraParams
from plumbline.tasks.params.on_policy import ArenaParams, HackingMonitorParams, KlParams
from plumbline.tasks.params.optimisation import EvaluatedOptimisation

GrpoLoss = Literal["dapo", "grpo", "bnpo", "dr_grpo", "cispo", "sapo", "luspo", "vespo"]

GRPO_KEYS = {
    "num_generations": "candidates",
    "steps_per_generation": "steps_per_rollout",
    "generation_batch_size": "steps_per_rollout",
    "num_iterations": "passes",
    "max_completion_length": "max_new_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "use_vllm": "use_vllm",
    "loss_type": "loss_type",
    "epsilon": "clip_range",
    "scale_rewards": "scale_by",
    "entropy_coef": "entropy_bonus",
    "beta": "kl.beta",
    "metric_for_best_model": "best_within_kl",
}
"""TRL arguments that GRPO has a key of its own for."""

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


class GrpoParams(EvaluatedOptimisation):
    """Group relative policy optimisation (Shao et al. 2024) with TRL's GRPOTrainer, on gains from a judge's ranking."""

    lr: float = Field(1e-3, gt=0, le=1, description="Peak learning rate of AdamW; 1e-6 for real models (TRL's).")
    adam_epsilon: float = Field(
        1e-5,
        gt=0,
        le=1e-2,
        description="Epsilon of AdamW, PPO's usual one: gradients of a rollout are small, and 1e-8 lets weights that "
        "hardly any token moves take whole steps on noise. On the sample world it bears a higher rate and wins more.",
    )
    epochs: float = Field(
        0.18,
        gt=0,
        le=100,
        description="Passes over the distinct training prompts; a fraction takes that share of them.",
    )
    batch_size: int = Field(64, ge=1, le=4096, description="Completions a device and forward pass.")
    candidates: int = Field(
        8, ge=2, le=64, description="Completions sampled a prompt, which the judge ranks (K); 4 to 8 are usual."
    )
    steps_per_rollout: int = Field(
        1,
        ge=1,
        le=1024,
        description="Optimiser steps that share one rollout; 1 is on-policy. A rollout holds batch_size x "
        "gradient_accumulation x steps_per_rollout completions a device.",
    )
    passes: int = Field(1, ge=1, le=16, description="Times that each rollout is gone through (μ in the paper).")
    max_new_tokens: int = Field(48, ge=1, le=16384, description="Longest sampled completion in tokens.")
    temperature: float = Field(
        1.0,
        gt=0,
        le=2,
        description="Sampling temperature; logits are divided by it in sampling, reference and update alike.",
    )
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus sampling threshold of rollouts; 1 is on-policy.")
    use_vllm: bool = Field(False, description="Sample rollouts with vLLM, through TRL (its vllm_… in trainer_args).")
    scale_by: Literal["group", "batch", "none"] = Field(
        "batch",
        description="What advantages are divided by: the standard deviation of gains in their group, in the whole "
        "rollout, or nothing. With soft gains the rollout's keeps groups of near equals from counting as much as "
        "clear ones: on the sample world a gold win rate of 0.82 against 0.79.",
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
    clip_range: float = Field(0.2, gt=0, lt=1, description="Clipping of the probability ratio, ε in the paper.")
    entropy_bonus: float = Field(
        0.0, ge=0, le=1, description="Weight of the mean token entropy (nats), which is added to the objective."
    )
    kl: KlParams = Field(
        default_factory=lambda: KlParams(beta=0.15, beta_min=0.1, target=0.16),
        description="The tie to π_ref, and its control. β weighs a nat against gains of unit spread, so it stands "
        "higher than beside a reward. On the way to the target it must not fall far: from 0.04 it fell to 0.003, the "
        "policy ran past the target, and no β brought it back.",
    )
    lora: LoraParams | None = Field(None, description="Train adapters only; null trains all weights.")
    eval_every: int = Field(
        50, ge=1, description="Optimiser steps between evaluations on the validation split; each leaves a checkpoint."
    )
    log_every: int = Field(5, ge=1, description="Optimiser steps between two rows of training.jsonl.")
    eval_batch_size: int = Field(
        256, ge=1, le=8192, description="Sequences sampled, or scored without gradients, at once."
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
    def steps_a_rollout(self) -> int:
        """Optimiser steps from one rollout to the next."""
        return self.steps_per_rollout * self.passes

    @property
    def completions_a_rollout(self) -> int:
        """Completions of one rollout on one device."""
        return self.batch_size * self.gradient_accumulation * self.steps_per_rollout

    @model_validator(mode="after")
    def _rollouts_hold_whole_groups(self) -> Self:
        rest = self.completions_a_rollout % self.candidates
        if rest:
            below = self.batch_size - self.batch_size % self.candidates
            near = [str(size) for size in (below, below + self.candidates) if size]
            raise ValueError(
                f"a rollout of {self.completions_a_rollout} completions (batch_size {self.batch_size} x "
                f"gradient_accumulation {self.gradient_accumulation} x steps_per_rollout {self.steps_per_rollout}) "
                f"does not divide into groups of {self.candidates} candidates. Set batch_size to a multiple of "
                f"{self.candidates}, such as {' or '.join(near)}, or choose candidates among "
                f"{_divisors(self.completions_a_rollout)}."
            )
        return self

    @model_validator(mode="after")
    def _evaluations_fall_between_rollouts(self) -> Self:
        if self.eval_every % self.steps_a_rollout:
            below = self.eval_every - self.eval_every % self.steps_a_rollout
            raise ValueError(
                f"eval_every ({self.eval_every}) must be a multiple of steps_per_rollout x passes "
                f"({self.steps_a_rollout}): a checkpoint holds no rollout, so a run resumes only where one is used up. "
                f"Set it to {below + self.steps_a_rollout}."
            )
        return self

    @model_validator(mode="after")
    def _no_dropout(self) -> Self:
        if self.lora is not None and self.lora.dropout > 0:
            raise ValueError(
                "lora.dropout above 0 gives a completion another log-probability in each forward pass, which GRPO "
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

    @model_validator(mode="after")
    def _no_refused_argument(self) -> Self:
        for name in self.trainer_args:
            if name in _REFUSED:
                raise ValueError(f"trainer_args.{name}: not with this method, because {_REFUSED[name]}. Remove it.")
        return self

    @classmethod
    def _own_keys(cls) -> dict[str, str]:
        return super()._own_keys() | GRPO_KEYS


def _divisors(completions: int) -> str:
    return ", ".join(str(size) for size in range(2, 17) if completions % size == 0) or "none up to 16"
