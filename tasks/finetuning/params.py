"""Params of the reference policy and of fine-tuning: sections `reference` and `finetune`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from data_contracts.params import Section
from tasks.models.optimisation import EvaluatedOptimisation, Optimisation

LossType = Literal[
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sigmoid_norm",
]

_SMOOTHED_LOSSES = ("exo_pair", "robust", "aot", "aot_unpaired")

DPO_KEYS = {
    "beta": "beta",
    "loss_type": "loss_type",
    "loss_weights": "sft_weight",
    "label_smoothing": "label_smoothing",
    "metric_for_best_model": "best_by",
}
"""TRL arguments that DPO's section has a key of its own for."""


class SftParams(Optimisation):
    """Supervised fine-tuning of the base on conversations, loss on assistant turns only."""

    enabled: bool = Field(True, description="False takes the base as the reference policy, unchanged.")
    data: Literal["world", "curated"] = Field(
        "world",
        description="Conversations to imitate: the sample world's demonstrations, or the chosen responses of "
        "the curated training pairs (data/curated).",
    )
    max_examples: int | None = Field(
        4096, ge=1, description="At most this many conversations, drawn with the run's seed; null takes all."
    )
    lr: float = Field(1e-3, gt=0, le=1, description="Peak learning rate of AdamW; 1e-5 to 5e-5 for real models.")
    epochs: float = Field(1.0, gt=0, le=100, description="Passes over the examples; a fraction stops within a pass.")
    save_every: int = Field(200, ge=1, description="Optimiser steps between two checkpoints to resume from.")

    @classmethod
    def _own_keys(cls) -> dict[str, str]:
        return super()._own_keys() | {"save_steps": "save_every"}


class ReferenceParams(Section):
    """The reference policy π_ref: where it starts, and how it is fine-tuned before it is frozen."""

    base: str | None = Field(
        None,
        description="Hugging Face model name or a local folder; null trains the sample world's own tiny base.",
    )
    revision: str | None = Field(None, description="Git revision of a model from the hub; pin it for real models.")
    trust_remote_code: bool = Field(
        False, description="Run Python code that the model's repository ships. Only for repositories you trust."
    )
    sft: SftParams = Field(default_factory=SftParams, description="Supervised fine-tuning of the base.")

    @model_validator(mode="after")
    def _revision_needs_a_base(self) -> Self:
        if self.revision is not None and self.base is None:
            raise ValueError(
                "reference.revision: set, but reference.base is null. Name the model, or drop the revision."
            )
        return self


class LoraParams(Section):
    """Low-rank adapters (Hu et al. 2021) in place of full fine-tuning; merged into the saved policy."""

    r: int = Field(16, ge=1, le=1024, description="Rank of the adapters.")
    alpha: float = Field(32.0, gt=0, description="Scale: the update is multiplied by alpha / r.")
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Dropout before the adapters. Above 0 the base's own dropout, if it has any, is active as well.",
    )
    target_modules: Literal["all-linear"] | tuple[str, ...] = Field(
        "all-linear", description="Names of the linear layers to adapt (peft); `lm_head` is not possible with DPO."
    )

    @model_validator(mode="after")
    def _no_lm_head(self) -> Self:
        if "lm_head" in self.target_modules:
            raise ValueError(
                "lora.target_modules: `lm_head` cannot be adapted, because TRL reads its weight directly. "
                "Remove it, or choose 'all-linear', which leaves it out."
            )
        return self


class EarlyStoppingParams(Section):
    """End training when neither validation metric improves any more."""

    patience: int = Field(3, ge=1, description="Evaluations in a row without improvement of either metric.")
    min_delta: float = Field(0.0, ge=0, lt=1, description="Smallest rise of a metric (a share) that counts.")


class ValidationParams(Section):
    """What is measured on the validation split while training; kept small because it is repeated."""

    pairs: int = Field(256, ge=1, le=512, description="At most this many validation pairs, drawn with the run's seed.")
    prompts: int = Field(
        128, ge=0, le=256, description="Validation prompts sampled from the policy for the win rate; 0 skips it."
    )
    max_new_tokens: int = Field(48, ge=1, le=4096, description="Longest sampled completion in tokens.")
    temperature: float = Field(1.0, gt=0, le=2, description="Sampling temperature; KL is of the model as sampled at 1.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus sampling threshold; 1 samples the full distribution.")


class DpoParams(EvaluatedOptimisation):
    """Direct preference optimisation (Rafailov et al. 2023) with TRL's DPOTrainer."""

    group_by_length: bool = Field(
        True,
        description="Put pairs of similar length into a batch, in an order fixed by seed and epoch: less padding. On "
        "the sample world a quarter less time at an equal win rate.",
    )
    beta: float = Field(
        0.1, gt=0, le=10, description="Strength of the tie to π_ref; 0.05 to 0.2 is usual, smaller drifts further."
    )
    loss_type: LossType = Field("sigmoid", description="Preference loss, by TRL's name; sigmoid is DPO itself.")
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="Assumed share of flipped labels (losses robust, exo_pair, aot, aot_unpaired)."
    )
    sft_weight: float = Field(
        0.3,
        ge=0,
        le=10,
        description="Weight of the mean negative log-likelihood of chosen tokens, added to the preference loss. "
        "0.3 gave a better win rate at half the KL on the sample world.",
    )
    lr: float = Field(
        5e-4,
        gt=0,
        le=1,
        description="Peak learning rate of AdamW; 5e-7 to 5e-6 for real models (TRL's default is 1e-6).",
    )
    epochs: float = Field(1.0, gt=0, le=100, description="Passes over the pairs; a fraction stops within a pass.")
    lora: LoraParams | None = Field(None, description="Train adapters only; null trains all weights.")
    validation: ValidationParams = Field(default_factory=ValidationParams, description="Evaluation while training.")
    early_stopping: EarlyStoppingParams | None = Field(
        default_factory=EarlyStoppingParams, description="When to end early; null trains to the end."
    )
    best_by: Literal["win_rate", "preference_accuracy"] = Field(
        "win_rate", description="Validation metric whose best checkpoint becomes the policy."
    )

    @model_validator(mode="after")
    def _best_metric_is_measured(self) -> Self:
        if self.best_by == "win_rate" and self.validation.prompts == 0:
            raise ValueError(
                "best_by is win_rate, but validation.prompts is 0, so no win rate is measured. "
                "Set best_by: preference_accuracy, or validation.prompts above 0."
            )
        return self

    @model_validator(mode="after")
    def _smoothing_fits_the_loss(self) -> Self:
        if self.label_smoothing and self.loss_type not in _SMOOTHED_LOSSES:
            raise ValueError(
                f"label_smoothing has no effect on loss_type {self.loss_type}. "
                f"Choose one of {', '.join(_SMOOTHED_LOSSES)}, or set it to 0."
            )
        if self.loss_type == "exo_pair" and self.label_smoothing == 0:
            raise ValueError("loss_type exo_pair needs label_smoothing above 0; its paper recommends 1e-3.")
        return self

    @classmethod
    def _own_keys(cls) -> dict[str, str]:
        return super()._own_keys() | DPO_KEYS


class FinetuneParams(Section):
    """How π_ref becomes the policy: the method, and a section for each method."""

    method: Literal["dpo"] = Field("dpo", description="Fine-tuning method.")
    dpo: DpoParams = Field(default_factory=DpoParams, description="Direct preference optimisation.")
