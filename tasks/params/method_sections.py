"""Sections of params that several fine-tuning methods share."""

from __future__ import annotations

from string import Formatter
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from plumbline.tasks.params.lengths import FOLLOWS, MOST
from plumbline.tasks.params.section import Section


class LoraParams(Section):
    """Low-rank adapters (Hu et al. 2021) in place of full fine-tuning; merged into the saved policy."""

    r: int = Field(16, ge=1, le=1024, description="Rank of the adapters.")
    lora_alpha: float = Field(32.0, gt=0, description="Scale: the update is multiplied by lora_alpha / r.")
    lora_dropout: float = Field(
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

    patience: int = Field(4, ge=1, description="Evaluations in a row without improvement of either metric.")
    min_delta: float = Field(0.0, ge=0, lt=1, description="Smallest rise of a metric (a share) that counts.")


class ValidationParams(Section):
    """What is measured on the validation split while training; kept small because it is repeated."""

    pairs: int = Field(256, ge=1, le=512, description="At most this many validation pairs, drawn with the run's seed.")
    prompts: int = Field(
        256, ge=0, le=4096, description="Validation prompts sampled from the policy for the win rate; 0 skips it."
    )
    max_new_tokens: int | None = Field(
        None, ge=1, le=MOST, description=f"Longest sampled completion in tokens; {FOLLOWS}"
    )
    temperature: float = Field(1.0, gt=0, le=2, description="Sampling temperature; KL is of the model as sampled at 1.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus sampling threshold; 1 samples the full distribution.")


class FormatParams(Section):
    """Prompt formats, drawn for each record by the seed and its id, so that a policy does not hang on one of them.

    All empty, the default, leaves every prompt as it is.
    """

    system_prompts: tuple[str, ...] = Field(
        (),
        description="System messages, one drawn for each prompt that has none of its own; an empty text adds none.",
    )
    templates: tuple[str, ...] = Field(
        (),
        description="Texts around the last user message, one drawn for each prompt, such as "
        "'Question: {prompt}\\nAnswer briefly.'; '{prompt}' alone leaves the message as it is.",
    )
    temperatures: tuple[float, ...] = Field(
        (), description="Sampling temperatures (0 < T <= 2) that methods which sample draw from, an update at a time."
    )
    validation: bool = Field(
        False,
        description="Format validation prompts as well; false measures the policy on the prompts that people wrote.",
    )

    @field_validator("templates")
    @classmethod
    def _templates_hold_the_prompt(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        for template in templates:
            fields = _template_fields(template)
            if fields != ["{prompt}"]:
                raise ValueError(
                    f"each template needs the field {{prompt}} once and no other, found {', '.join(fields) or 'none'} "
                    f"in {template!r}. Write a brace that is no field twice ({{{{ or }}}})."
                )
        return templates

    @field_validator("temperatures")
    @classmethod
    def _temperatures_sample(cls, temperatures: tuple[float, ...]) -> tuple[float, ...]:
        for temperature in temperatures:
            if not 0 < temperature <= 2:
                raise ValueError(f"a sampling temperature lies above 0 and at most at 2, found {temperature:g}.")
        return temperatures

    @property
    def on(self) -> bool:
        """Whether anything is drawn."""
        return bool(self.system_prompts or self.templates or self.temperatures)


def _template_fields(template: str) -> list[str]:
    """The fields of a template as written, attributes, conversions and format specifications included."""
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"cannot read the template {template!r}: {error}.") from error
    return [
        "{" + name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "") + "}"
        for _, name, spec, conversion in parts
        if name is not None
    ]
