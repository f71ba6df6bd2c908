"""Params of the reward model: section `reward`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from plumbline.tasks.params.optimisation import EvaluatedOptimisation
from plumbline.tasks.params.section import Section


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


class RewardParams(EvaluatedOptimisation):
    """A Bradley-Terry reward model on the curated pairs, and the audit it must pass."""

    config_class: ClassVar[str] = "RewardConfig"

    init: Literal["reference", "base"] = Field(
        "reference",
        description="The model whose weights it starts from: pi_ref, or the base before SFT. The base suits where it "
        "knows the chat format (the sample world's does), and lets the reward model train beside pi_ref.",
    )
    num_train_epochs: float = Field(1.0, gt=0, le=100, description="Passes over the training pairs.")
    learning_rate: float = Field(
        1e-5,
        gt=0,
        le=1,
        description="Peak learning rate of AdamW; 1e-5 is usual from 1B parameters on (9e-6 in Ouyang et al. 2022).",
    )
    per_device_train_batch_size: int = Field(8, ge=1, le=4096, description="Pairs per device and forward pass.")
    held_out_share: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="Share of the training pairs, in whole clusters drawn with the run's seed, on which a second "
        "reward model is trained with another seed: the held-out judge, which no policy is trained against. It then "
        "chooses the best checkpoint, feeds the monitors and judges the evaluation; the first learns from the rest. "
        "Training on recorded pairs still reads all of them. Its cost is twice the training: each reads its own pairs "
        "only, but loading, validation, audit, storage and memory come twice. 0: none, and the reward model judges, "
        "also what was optimised against it; at 0.5 both learn from as many pairs.",
    )
    center_rewards_coefficient: float | None = Field(
        0.01,
        ge=0,
        le=10,
        description="Weight of the squared sum of both rewards, which keeps rewards around 0 "
        "(Eisenstein et al. 2023, eq. 2, their value). null: off.",
    )
    audit: RewardThresholds = Field(default_factory=RewardThresholds, description="Thresholds of the audit.")
