"""`PPOConfig`: transformers' TrainingArguments with what PPO adds; intervals are counted in updates."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments

from plumbline.data_contracts.errors import ParamsError
from plumbline.tasks.params.on_policy import HackingMonitorParams, KlParams, ShapingParams, VllmParams


@dataclass
class PPOConfig(TrainingArguments):  # type: ignore[misc]
    """Arguments of `PPOTrainer`. Defaults are those of summarize_from_feedback_details where it has them.

    One update: a rollout of `episodes_per_update` episodes, then `num_ppo_epochs` passes over it in `num_mini_batches`
    optimiser steps each. `per_device_train_batch_size` is the rows of a forward pass; how many passes an optimiser step
    accumulates (`gradient_accumulation_steps`) follows from it, as do `max_steps` and the intervals in steps.
    """

    learning_rate: float = field(default=1e-6, metadata={"help": "Peak learning rate of the policy."})
    adam_epsilon: float = field(default=1e-5, metadata={"help": "Epsilon of AdamW."})
    total_episodes: int = field(
        default=10_000, metadata={"help": "Episodes (sampled completions) of the whole training."}
    )
    episodes_per_update: int = field(default=64, metadata={"help": "Episodes of one rollout, over all processes."})
    prompt_tokens_per_update: int | None = field(
        default=None, metadata={"help": "Most prompt tokens of one rollout; a rollout then may have fewer episodes."}
    )
    num_ppo_epochs: int = field(default=4, metadata={"help": "Passes over a rollout."})
    num_mini_batches: int = field(default=1, metadata={"help": "Optimiser steps of a pass."})
    critic_learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate of the critic; None: that of the policy."}
    )
    critic_warmup_updates: int = field(default=0, metadata={"help": "First updates, which train the critic alone."})
    cliprange: float = field(default=0.2, metadata={"help": "ε of the clipped policy loss."})
    cliprange_value: float | None = field(default=0.2, metadata={"help": "ε of the clipped value loss; None: off."})
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss."})
    gamma: float = field(default=1.0, metadata={"help": "Discount of a later token's reward."})
    lam: float = field(default=0.95, metadata={"help": "λ of generalised advantage estimation."})
    whiten_advantages: bool = field(default=True, metadata={"help": "Advantages to mean 0, variance 1 an update."})
    entropy_coef: float = field(default=0.0, metadata={"help": "Weight of the entropy bonus."})
    temperature: float = field(default=1.0, metadata={"help": "Divides logits in sampling, reference and losses."})
    top_p: float = field(default=1.0, metadata={"help": "Nucleus that is sampled from; below 1 biases PPO."})
    max_completion_length: int = field(default=53, metadata={"help": "Longest completion in tokens."})
    calibration_prompts: int = field(
        default=256,
        metadata={"help": "Completions of π_ref that the reward is calibrated on before training; 0: none."},
    )
    beta: float = field(default=0.04, metadata={"help": "β at the start: reward lost per nat."})
    kl: KlParams = field(default_factory=KlParams, metadata={"help": "Control of β by the KL from π_ref."})
    shaping: ShapingParams = field(default_factory=ShapingParams, metadata={"help": "From scores to rewards a token."})
    monitors: HackingMonitorParams = field(
        default_factory=HackingMonitorParams, metadata={"help": "Watch for reward hacking."}
    )
    vllm: VllmParams | None = field(default=None, metadata={"help": "Sample rollouts by vLLM; None: by our sampler."})
    log_every: int = field(default=1, metadata={"help": "Updates between two logged rows."})
    eval_every: int = field(default=50, metadata={"help": "Updates between evaluations; each leaves a checkpoint."})
    best_within_kl: float | None = field(
        default=None, metadata={"help": "Most nats per token at an evaluation for its checkpoint to be the best."}
    )

    def __post_init__(self) -> None:
        """Check that batches divide and β can move, and derive what follows. Raises `ParamsError` or `ValueError`."""
        self.logging_steps = self.log_every * self.steps_per_update
        self.eval_steps = self.save_steps = self.eval_every * self.steps_per_update
        # examples are prompts and the trainer tells columns apart itself
        self.remove_unused_columns = False
        # transformers needs the argument that bf16 is meant for the CPU
        if self.bf16 and not torch.accelerator.is_available():
            self.use_cpu = True
        super().__post_init__()
        self._check()
        self.gradient_accumulation_steps = self._accumulation()

    @property
    def steps_per_update(self) -> int:
        """Optimiser steps of one update."""
        return self.num_ppo_epochs * self.num_mini_batches

    @property
    def rows_per_process(self) -> int:
        """Rows of a full minibatch on each process."""
        return self.episodes_per_update // (self.num_mini_batches * int(self.world_size))

    @property
    def keeps_critic_pass(self) -> bool:
        """True if the first optimiser step of an update is one forward pass of the whole rollout, on one process.

        The critic has then just made this pass, when it scored the rollout. With gradient checkpointing it is made
        again, since what the first one holds on to would not fit.
        """
        whole = self.num_mini_batches == self.gradient_accumulation_steps == self.world_size == 1
        return bool(whole and not self.activation_checkpointing)

    def _accumulation(self) -> int:
        return -(-self.rows_per_process // int(self.per_device_train_batch_size))

    def to_dict(self) -> dict[str, Any]:
        """Arguments as plain values."""
        sections = {name: getattr(self, name).model_dump(mode="json") for name in ("kl", "shaping", "monitors")}
        sections["vllm"] = self.vllm and self.vllm.model_dump(mode="json")
        plain: dict[str, Any] = super().to_dict()
        return plain | sections

    def _check(self) -> None:
        self.kl.require_movable(self.beta)
        parts = self.num_mini_batches * self.world_size
        if self.episodes_per_update % parts:
            nearest = max(parts, round(self.episodes_per_update / parts) * parts)
            raise ParamsError(
                f"episodes_per_update ({self.episodes_per_update}) must be a multiple of num_mini_batches x processes "
                f"({self.num_mini_batches} x {self.world_size}), so that every optimiser step sees as many episodes. "
                f"Set it to {nearest}."
            )
        if self.eval_every % self.log_every:
            raise ParamsError(
                f"log_every ({self.log_every}) must divide eval_every ({self.eval_every}), or a resumed run would log "
                "other averages than an uninterrupted one. Choose log_every among the divisors of eval_every."
            )
        if self.gradient_accumulation_steps not in (1, self._accumulation()):
            raise ParamsError(
                f"gradient_accumulation_steps ({self.gradient_accumulation_steps}) follows from episodes_per_update, "
                "num_mini_batches and per_device_train_batch_size. Leave it out, and lower per_device_train_batch_size."
            )
        if self.fp16 or self.deepspeed or self.fsdp or self.n_gpu > 1:
            raise ParamsError(
                "PPOTrainer runs in float32 or bf16, in one process on one device or under DDP (torchrun, a process a "
                f"device); found fp16={self.fp16}, deepspeed={self.deepspeed}, fsdp={self.fsdp}, {self.n_gpu} devices "
                "in one process. Leave fp16, deepspeed and fsdp out, and launch with torchrun or show one device."
            )
