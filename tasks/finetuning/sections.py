"""Sections of params that several fine-tuning methods share."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from data_contracts.params import Section


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
