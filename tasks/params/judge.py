"""Params of the judge that ranks candidates: section `judge`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from plumbline.tasks.params.gains import GainParams
from plumbline.tasks.params.llm_judge import LlmJudgeParams
from plumbline.tasks.params.mixture import (
    BrevityTermParams,
    RepetitionTermParams,
    SafetyTermParams,
    TermParams,
    repeated_names,
)
from plumbline.tasks.params.section import Section

JudgeKind = Literal["rule", "reward_model", "llm"]

_NOT_RULES = ("reward_model", "length_penalty")


class RuleJudgeParams(Section):
    """A judge by rules: the weighted sum of reward terms, as they are."""

    terms: tuple[TermParams, ...] = Field(
        (SafetyTermParams(), BrevityTermParams(), RepetitionTermParams()),
        min_length=1,
        max_length=32,
        description="Terms as in `mixture`, of the kinds safety, brevity, compliance, repetition_penalty and function, "
        "with normalise: none.",
    )
    temperature: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="P(one beats the other) = sigmoid(difference of sums / temperature); null: the higher sum wins.",
    )

    @model_validator(mode="after")
    def _terms_are_rules(self) -> Self:
        for term in self.terms:
            if term.kind in _NOT_RULES:
                raise ValueError(
                    f"terms: `{term.title}` is a {term.kind}, which a judge of texts cannot be given. Take judge.kind "
                    "reward_model for a reward model, and brevity for length."
                )
            if term.normalise != "none":
                raise ValueError(
                    f"terms: `{term.title}` is normalised by {term.normalise}, but a judge has no batch of its own to "
                    "measure. Set normalise: none, and weigh the terms by `weight`."
                )
        if repeated := repeated_names(self.terms):
            raise ValueError(f"terms: more than one is named {', '.join(repeated)}. Give each a `name` of its own.")
        return self


class RewardModelJudgeParams(Section):
    """A judge by a reward model."""

    path: str | None = Field(
        None,
        min_length=1,
        description="Folder of another reward model than the one trained here, such as one that the policy's reward "
        "does not use; null takes the trained one.",
    )
    temperature: float = Field(
        1.0,
        gt=0,
        allow_inf_nan=False,
        description="P(one beats the other) = sigmoid(difference of rewards / temperature); 1 is how Bradley-Terry "
        "training means it.",
    )


class JudgeParams(Section):
    """Who ranks candidates, what a rank is worth, and how far the judge must agree with people."""

    kind: JudgeKind = Field(
        "reward_model", description="rule, reward_model, or llm (a language model over the OpenAI chat protocol)."
    )
    gains: GainParams = Field(default_factory=GainParams, description="What a ranking is worth to the candidates.")
    calibration_pairs: int = Field(
        256,
        ge=8,
        le=100_000,
        description="Held-out labelled pairs, drawn with the run's seed, that the judge is measured on, each in both "
        "orders. At 256 an accuracy is known to within 0.06.",
    )
    min_kappa: float = Field(
        0.2,
        ge=-1,
        le=1,
        description="Least agreement with the labels, Cohen's kappa; below it the run stops. 0 is chance, 0.21 to 0.40 "
        "fair (Landis & Koch 1977); noisy labels bound what any judge can reach.",
    )
    max_position_bias: float = Field(
        0.2,
        ge=0,
        le=1,
        description="Largest difference between the shares of answers for the first and for the second candidate "
        "shown, each pair being shown in both orders.",
    )
    max_unusable: float = Field(0.1, ge=0, le=1, description="Largest share of pairs without a usable answer.")
    rule: RuleJudgeParams = Field(default_factory=RuleJudgeParams, description="With kind rule.")
    reward_model: RewardModelJudgeParams = Field(
        default_factory=RewardModelJudgeParams, description="With kind reward_model."
    )
    llm: LlmJudgeParams = Field(default_factory=LlmJudgeParams, description="With kind llm.")
