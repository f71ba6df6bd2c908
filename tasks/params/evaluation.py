"""Params of the evaluation and of the gate that stands behind it."""

from __future__ import annotations

from pydantic import Field, model_validator

from plumbline.tasks.params.lengths import FOLLOWS, MOST
from plumbline.tasks.params.section import Section
from plumbline.tasks.params.thresholds import Thresholds


class EvaluationParams(Section):
    """How the policy is sampled, judged and summed up on the test split."""

    max_prompts: int = Field(
        512,
        ge=1,
        description="Distinct test prompts that are sampled, in file order. Some 2,000 bound a 95 % interval of a "
        "win rate to ±0.02; 512 leave ±0.04.",
    )
    temperature: float = Field(
        1.0,
        gt=0,
        le=5,
        description="Logits of both policies are divided by this. At 1 the samples are those of the policy itself, "
        "which the KL divergence is defined on.",
    )
    top_p: float = Field(
        1.0, gt=0, le=1, description="Nucleus that is sampled from, as probability mass; 1 is all of it."
    )
    max_new_tokens: int | None = Field(
        None, ge=1, le=MOST, description=f"Longest completion in tokens; a longer one counts as unfinished. {FOLLOWS}"
    )
    batch_size: int = Field(32, ge=1, description="Prompts sampled, or completions scored, at once.")
    resamples: int = Field(
        2000, ge=100, description="Bootstrap resamples of an interval (Efron & Tibshirani: ≥ 1,000)."
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Confidence of every interval.")
    bins: int = Field(
        20,
        ge=2,
        le=100,
        multiple_of=2,
        description="Bins of the reliability diagram and ECE over [0, 1]. Even, so that none has ½ inside, where the "
        "two orders of a pair would cancel; 20 leave 10 over the confidence in [½, 1].",
    )


class GateParams(Thresholds):
    """What a model must reach to pass; null turns a check off."""

    min_prompts: int | None = Field(
        200, ge=1, description="Fewest prompts behind the judge's win rate: below it no interval is worth a decision."
    )
    min_gold_win_rate_low: float | None = Field(
        0.5, ge=0, le=1, description="Lower end of the gold win rate; not applicable in a world without a gold reward."
    )
    min_length_controlled_win_rate: float | None = Field(
        0.5, ge=0, le=1, description="The judge's win rate at equal length: refuses a policy that wins by length alone."
    )

    @model_validator(mode="after")
    def _judge_is_checked(self) -> GateParams:
        if self.min_prompts is not None and self.min_win_rate_low is None and self.min_gold_win_rate_low is None:
            raise ValueError(
                "gate.min_prompts guards a win rate, but min_win_rate_low and min_gold_win_rate_low are both null: "
                "set one of them (0.5 says better than the reference policy) or set min_prompts to null"
            )
        return self
