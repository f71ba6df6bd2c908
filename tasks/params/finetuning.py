"""Params of the reference policy and of fine-tuning: sections `reference` and `finetune`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from plumbline.tasks.params.grpo import GrpoParams
from plumbline.tasks.params.method_sections import EarlyStoppingParams, FormatParams, LoraParams, ValidationParams
from plumbline.tasks.params.optimisation import EvaluatedOptimisation, Optimisation, SamplingStrategy
from plumbline.tasks.params.ppo import PpoParams
from plumbline.tasks.params.section import Section

MethodName = Literal["sft", "dpo", "kto", "orpo", "grpo", "ppo"]

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

_SMOOTHED_LOSSES = ("sigmoid", "exo_pair", "robust", "aot", "aot_unpaired")


class SftParams(Optimisation):
    """Supervised fine-tuning of the base on conversations, loss on assistant turns only."""

    config_class: ClassVar[str] = "SFTConfig"

    enabled: bool = Field(True, description="False takes the base as the reference policy, unchanged.")
    data: Literal["world", "curated"] = Field(
        "curated",
        description="Conversations to imitate: the chosen responses of the curated training pairs, or the sample "
        "world's demonstrations.",
    )
    max_examples: int | None = Field(
        None, ge=1, description="At most this many conversations, drawn with the run's seed; null takes all."
    )
    learning_rate: float = Field(
        2e-5, gt=0, le=1, description="Peak learning rate of AdamW (TRL's default); 1e-5 to 5e-5 is usual."
    )
    num_train_epochs: float = Field(
        1.0, gt=0, le=100, description="Passes over the examples; a fraction stops within a pass."
    )
    save_steps: int = Field(200, ge=1, description="Optimiser steps between two checkpoints to resume from.")


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
    refused_threshold: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Largest share of a stage's records that the chat template may refuse (for a system turn, say) "
        "before the run stops; up to it they are set aside and counted. 0: any stops the run; 1: none does.",
    )
    sft: SftParams = Field(default_factory=SftParams, description="Supervised fine-tuning of the base.")

    @model_validator(mode="after")
    def _revision_needs_a_base(self) -> Self:
        if self.revision is not None and self.base is None:
            raise ValueError(
                "reference.revision: set, but reference.base is null. Name the model, or drop the revision."
            )
        return self


class OfflineParams(EvaluatedOptimisation):
    """What every method that learns from recorded feedback shares."""

    learning_rate: float = Field(
        1e-6,
        gt=0,
        le=1,
        description="Peak learning rate of AdamW (TRL's default); 5e-7 to 5e-6 is usual, 10 times that with LoRA.",
    )
    num_train_epochs: float = Field(
        1.0, gt=0, le=100, description="Passes over the examples; a fraction stops within a pass."
    )
    train_sampling_strategy: SamplingStrategy = Field(
        "group_by_length",
        description="random, or group_by_length: examples of similar length in a batch, in an order fixed by seed and "
        "epoch, so less padding. For DPO on the sample world a quarter less time at an equal win rate; where length "
        "tells the kind of request, batches are less alike and imitation learns a little less.",
    )
    lora: LoraParams | None = Field(None, description="Train adapters only; null trains all weights.")
    validation: ValidationParams = Field(default_factory=ValidationParams, description="Evaluation while training.")
    early_stopping: EarlyStoppingParams | None = Field(
        default_factory=EarlyStoppingParams, description="When to end early; null trains to the end."
    )
    metric_for_best_model: Literal["win_rate", "preference_accuracy"] = Field(
        "win_rate", description="Validation metric whose best checkpoint becomes the policy."
    )
    best_within_kl: float | None = Field(
        0.2,
        gt=0,
        le=10,
        description="Checkpoints above this KL from π_ref (nats per token) become the policy only if there is no "
        "other; null: whatever their KL.",
    )

    @model_validator(mode="after")
    def _best_metric_is_measured(self) -> Self:
        if self.metric_for_best_model == "win_rate" and self.validation.prompts == 0:
            raise ValueError(
                "metric_for_best_model is win_rate, but validation.prompts is 0, so no win rate is measured. "
                "Set metric_for_best_model: preference_accuracy, or validation.prompts above 0."
            )
        return self


class ImitationParams(OfflineParams):
    """Supervised fine-tuning on the chosen responses of the training pairs, loss on assistant turns only."""

    config_class: ClassVar[str] = "SFTConfig"

    learning_rate: float = Field(
        2e-5, gt=0, le=1, description="Peak learning rate of AdamW (TRL's default); 1e-5 to 5e-5 is usual."
    )
    max_examples: int | None = Field(
        None, ge=1, description="At most this many pairs, drawn with the run's seed; null takes all."
    )


class DpoParams(OfflineParams):
    """Direct preference optimisation (Rafailov et al. 2023) with TRL's DPOTrainer."""

    config_class: ClassVar[str] = "DPOConfig"
    elsewhere: ClassVar[Mapping[str, str]] = {**OfflineParams.elsewhere, "loss_weights": "sft_weight"}

    beta: float = Field(
        0.1,
        gt=0,
        le=10,
        description="Strength of the tie to π_ref (TRL's default); 0.05 to 0.2 is usual, smaller drifts further.",
    )
    loss_type: LossType = Field(
        "sigmoid",
        description="Preference loss, by TRL's name; sigmoid is DPO itself, ipo is that of Azar et al. 2023 (its τ is "
        "`beta`, per token), robust that of Chowdhury et al. 2024.",
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="Assumed share of flipped labels (losses sigmoid, robust, exo_pair, aot, aot_unpaired). With "
        "sigmoid it makes the labels soft: conservative DPO (Mitchell 2023).",
    )
    sft_weight: float = Field(
        0.2,
        ge=0,
        le=10,
        description="Weight of the mean negative log-likelihood of chosen tokens, added to the preference loss: it "
        "keeps the policy near what people wrote (0.2 in Dubey et al. 2024, Llama 3).",
    )

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


class KtoParams(OfflineParams):
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024) with TRL's KTOTrainer, on single judged responses.

    Each training pair gives two: its chosen response is desirable, its rejected one is not.
    """

    config_class: ClassVar[str] = "KTOConfig"

    per_device_train_batch_size: int = Field(
        8,
        ge=2,
        le=4096,
        description="Examples per device and forward pass; the paper's reference point is estimated from them, so two "
        "at least, and better eight.",
    )
    beta: float = Field(
        0.1, gt=0, le=10, description="Strength of the tie to π_ref (risk aversion); 0.05 to 0.2 is usual."
    )
    loss_type: Literal["kto", "apo_zero_unpaired"] = Field(
        "kto", description="Loss by TRL's name; apo_zero_unpaired (D'Oosterlinck et al. 2024) has no reference point."
    )
    desirable_weight: float | Literal["auto"] = Field(
        "auto",
        description="λ_D, weight of desirable examples, above 0. auto: 1, or more where they are the fewer, so "
        "that λ_D·n_D / (λ_U·n_U) comes into [1, 4/3] (Ethayarajh et al. 2024, eq. 9).",
    )
    undesirable_weight: float | Literal["auto"] = Field(
        "auto", description="λ_U, weight of undesirable examples, above 0; auto as for desirable ones."
    )

    @model_validator(mode="after")
    def _weights_go_together(self) -> Self:
        weights = (self.desirable_weight, self.undesirable_weight)
        if weights.count("auto") == 1:
            raise ValueError(
                "desirable_weight and undesirable_weight balance each other: set both to auto, or both to numbers."
            )
        if any(weight != "auto" and not 0 < float(weight) <= 1000 for weight in weights):
            raise ValueError(
                f"desirable_weight and undesirable_weight lie above 0 and at most at 1000, found {weights}."
            )
        return self


class OrpoParams(OfflineParams):
    """Odds-ratio preference optimisation (Hong et al. 2024) with TRL's ORPOTrainer: no reference in its loss."""

    config_class: ClassVar[str] = "ORPOConfig"

    beta: float = Field(
        0.1, gt=0, le=10, description="Weight of the odds-ratio term beside the likelihood (λ in the paper: 0.1 to 1)."
    )


class FinetuneParams(Section):
    """How π_ref becomes the policy: the methods, one after the other, and a section for each."""

    methods: tuple[MethodName, ...] = Field(
        ("dpo",),
        min_length=1,
        max_length=8,
        description="Fine-tuning methods in order; each starts from the policy that the one before it left "
        "(such as [sft, dpo, ppo]).",
    )
    stage_reference: Literal["reference", "previous"] = Field(
        "reference",
        description="What a later method is tied to: π_ref itself, or the policy that the method before it left.",
    )
    formats: FormatParams = Field(
        default_factory=FormatParams, description="Prompt formats that training draws from, whatever the method."
    )
    sft: ImitationParams = Field(default_factory=ImitationParams, description="Supervised fine-tuning.")
    dpo: DpoParams = Field(default_factory=DpoParams, description="Direct preference optimisation.")
    kto: KtoParams = Field(default_factory=KtoParams, description="Kahneman-Tversky optimisation.")
    orpo: OrpoParams = Field(default_factory=OrpoParams, description="Odds-ratio preference optimisation.")
    grpo: GrpoParams = Field(default_factory=GrpoParams, description="Group relative policy optimisation.")
    ppo: PpoParams = Field(default_factory=PpoParams, description="Proximal policy optimisation.")
