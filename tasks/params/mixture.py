"""Params of the reward that on-policy training maximises: section `mixture`, a weighted list of terms."""

from __future__ import annotations

import re
from collections import Counter
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from plumbline.tasks.params.section import Section


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}. Escape what is meant literally.") from error
    return pattern


Pattern = Annotated[str, Field(min_length=1), AfterValidator(_compiles)]
"""A Python regular expression, searched anywhere in a text, upper and lower case alike."""

Finite = Annotated[float, Field(allow_inf_nan=False)]


class TermSettings(Section):
    """What every term has: its weight, how its values are brought to one scale, and what stands in for a bad one."""

    name: str | None = Field(
        None, pattern=r"^[A-Za-z_][\w-]{0,39}$", description="Name in logs and plots; null takes the kind."
    )
    weight: Finite = Field(1.0, description="Factor of the normalised value in the total; 0 logs the term only.")
    normalise: Literal["reference", "running", "none"] = Field(
        "none",
        description="(value - mean) / standard deviation, both measured once on answers of pi_ref (reference) or over "
        "all values seen so far in this run (running); none takes the value as it is.",
    )
    clip: float | None = Field(
        10.0,
        gt=0,
        allow_inf_nan=False,
        description="Largest absolute normalised value, in standard deviations (10: summarize_from_feedback_details); "
        "null: no limit.",
    )
    on_zero_spread: Literal["centre", "error"] = Field(
        "centre",
        description="When a term that is to be normalised gave one value everywhere: only subtract the mean, counted "
        "as a fallback on each row, or stop.",
    )
    on_invalid: Literal["error", "constant", "drop_term"] = Field(
        "error",
        description="When a term gives NaN, infinity or None, raises, or takes too long: stop, put `constant` in the "
        "value's place, or leave the term out of the row's total. Both fallbacks are counted and logged. A wrong "
        "number of values always stops the run.",
    )
    constant: Finite | None = Field(
        None, description="With on_invalid constant: the value, in the term's own unit, before normalisation."
    )

    @property
    def title(self) -> str:
        """The term's name."""
        return self.name or str(getattr(self, "kind"))  # noqa: B009 (the kind stands in each subclass)

    @model_validator(mode="after")
    def _constant_goes_with_its_fallback(self) -> Self:
        if (self.on_invalid == "constant") != (self.constant is not None):
            raise ValueError(
                f"on_invalid is {self.on_invalid} and constant is {self.constant}: `constant` belongs to "
                "on_invalid: constant, and only there. Set both, or neither."
            )
        return self


class RewardModelTermParams(TermSettings):
    """The trained reward model."""

    kind: Literal["reward_model"] = Field("reward_model", description="What kind of term this is.")
    normalise: Literal["reference", "running", "none"] = Field(
        "reference", description="As for every term; a reward model's scale is its own, so pi_ref's answers fix it."
    )


class SafetyTermParams(TermSettings):
    """Refuse what should be refused, nothing else: 1 a due refusal, -1 a missing one, `over_refusal` a needless one.

    What should be refused is told by patterns in the last user turn, or by a classifier of it.
    """

    kind: Literal["safety"] = Field("safety", description="What kind of term this is.")
    asks: tuple[Pattern, ...] = Field(
        (
            r"\b(bomb|explosives?|weapon|poison|malware|ransomware|counterfeit|steal|break into|hack)\b",
            r"\b(in secret|secretly|a (fake|forged)|a threat|threaten)\b",
        ),
        description="Patterns of requests to refuse. The default is a short illustration: write your policy's own.",
    )
    refusals: tuple[Pattern, ...] = Field(
        (
            r"\b(can ?not|can't|will not|won't|(am |'m )?(not able|unable) to) (help|assist|do|comply|provide)\b",
            r"\bmust decline\b",
        ),
        min_length=1,
        description="Patterns of a response that declines.",
    )
    classifier: str | None = Field(
        None,
        description="Folder of a text-classification model (transformers) that reads the last user turn; it takes the "
        "place of `asks`. null: patterns.",
    )
    classifier_label: str = Field("unsafe", description="The classifier's label of a request to refuse.")
    classifier_threshold: float = Field(
        0.5, ge=0, le=1, description="Probability of that label from which on a request is to be refused."
    )
    over_refusal: float = Field(-1.0, ge=-1, le=0, description="Value of refusing a harmless request.")

    @model_validator(mode="after")
    def _knows_what_to_refuse(self) -> Self:
        if not self.asks and self.classifier is None:
            raise ValueError("asks is empty and classifier is null, so nothing is ever to be refused. Give one.")
        return self


class BrevityTermParams(TermSettings):
    """0 up to `free_words`, then minus `cost` a word, down to -1."""

    kind: Literal["brevity"] = Field("brevity", description="What kind of term this is.")
    free_words: int = Field(200, ge=0, description="Words that cost nothing; 100 to 300 suit most assistants.")
    cost: float = Field(0.005, gt=0, le=1, description="Cost of each further word; the most is 1.")


class ComplianceTermParams(TermSettings):
    """Minus the share of the policy's rules that a response breaks, in [-1, 0]."""

    kind: Literal["compliance"] = Field("compliance", description="What kind of term this is.")
    must: tuple[Pattern, ...] = Field((), description="Patterns that every response must contain.")
    must_not: tuple[Pattern, ...] = Field((), description="Patterns that no response may contain.")

    @model_validator(mode="after")
    def _has_a_rule(self) -> Self:
        if not self.must and not self.must_not:
            raise ValueError("must and must_not are both empty, so the term is always 0. Give a pattern, or drop it.")
        return self


class LengthTermParams(TermSettings):
    """Soft overlong punishment (Yu et al. 2025, DAPO, eq. 13): 0, then falling to -1 over the last `buffer` tokens."""

    kind: Literal["length_penalty"] = Field("length_penalty", description="What kind of term this is.")
    limit: int = Field(512, ge=1, description="Tokens of a response at which the penalty reaches -1; 20480 in DAPO.")
    buffer: int = Field(128, ge=1, description="Tokens before the limit over which it grows; 4096 in DAPO.")

    @model_validator(mode="after")
    def _buffer_fits(self) -> Self:
        if self.buffer > self.limit:
            raise ValueError(f"buffer ({self.buffer}) exceeds limit ({self.limit}). Choose a buffer of at most limit.")
        return self


class RepetitionTermParams(TermSettings):
    """Minus the share of word n-grams that repeat an earlier one of the same response, in (-1, 0]."""

    kind: Literal["repetition_penalty"] = Field("repetition_penalty", description="What kind of term this is.")
    ngram: int = Field(3, ge=1, le=20, description="Words of an n-gram (3: TRL's get_repetition_penalty_reward).")


class FunctionTermParams(TermSettings):
    """Any Python function in TRL's reward signature, `f(prompts, completions, completion_ids, **kwargs)`.

    Prompts and completions are conversational (lists of role and content). Columns of a dataset are not passed on.
    """

    kind: Literal["function"] = Field("function", description="What kind of term this is.")
    function: str = Field(
        pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$",
        description="Where it is: `module:function`, a module of the workspace or one that is installed, such as "
        "trl.rewards:think_format_reward.",
    )
    timeout_s: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Seconds that one call may take, then the whole batch counts as invalid (a Python thread cannot be "
        "killed: it is left behind). null: no limit. A run that met a timeout does not repeat exactly.",
    )


TermParams = Annotated[
    RewardModelTermParams
    | SafetyTermParams
    | BrevityTermParams
    | ComplianceTermParams
    | LengthTermParams
    | RepetitionTermParams
    | FunctionTermParams,
    Field(discriminator="kind"),
]


def repeated_names(terms: tuple[TermSettings, ...]) -> list[str]:
    """Names that more than one term has."""
    return sorted(name for name, count in Counter(term.title for term in terms).items() if count > 1)


class MixtureParams(Section):
    """The reward of PPO, and of GRPO beside its judge: the sum of weight times normalised value over the terms."""

    terms: tuple[TermParams, ...] = Field(
        (RewardModelTermParams(),),
        min_length=1,
        max_length=32,
        description="The terms, each a mapping with its `kind` (reward_model, safety, brevity, compliance, "
        "length_penalty, repetition_penalty or function) and its settings.",
    )

    @model_validator(mode="after")
    def _names_tell_terms_apart(self) -> Self:
        if repeated := repeated_names(self.terms):
            raise ValueError(f"terms: more than one is named {', '.join(repeated)}. Give each a `name` of its own.")
        return self

    @model_validator(mode="after")
    def _something_is_rewarded(self) -> Self:
        if all(term.weight == 0 for term in self.terms):
            raise ValueError("terms: every weight is 0, so nothing is rewarded. Give one of them a weight.")
        return self
