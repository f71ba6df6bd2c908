"""The vocabulary of judged text: completions of a policy, their rewards, and judgements of groups of them.

`tasks.training.rewards` implements `Reward` and `Judge`; fine-tuning and evaluation only know these shapes, and the
verb injects the implementation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from plumbline.data_contracts.records import Message

if TYPE_CHECKING:
    from plumbline.tasks.models.sampling import Completion

Floats = NDArray[np.float64]
Prompt = Sequence[Message]


@dataclass(frozen=True, slots=True)
class Completions:
    """N completions of one policy, as text and as the tokens that were drawn.

    `token_ids` includes the stop token where `finished`; `texts` are without it.
    """

    prompts: Sequence[Prompt]
    texts: Sequence[str]
    token_ids: Sequence[Sequence[int]]
    finished: Sequence[bool]

    @classmethod
    def of(cls, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> Self:
        """Completions as a sampler gave them."""
        return cls(
            prompts,
            [each.text for each in completions],
            [each.token_ids for each in completions],
            [each.finished for each in completions],
        )


@dataclass(frozen=True, slots=True)
class TermValues:
    """One reward term on N completions; NaN where the term gave no value and its fallback leaves the row out."""

    raw: Floats  # (N,) as the function returned it
    normalised: Floats  # (N,) after normalisation and clipping, before the weight
    weight: float


@dataclass(frozen=True, slots=True)
class Scored:
    """Rewards of N completions: `total` (N,) is the sum of weight times normalised over the terms, always finite.

    `fallbacks` counts, by "term: reason", the rows for which a stated fallback stood in for a value.
    """

    total: Floats
    terms: Mapping[str, TermValues]
    fallbacks: Mapping[str, int]


class Reward(Protocol):
    """A reward for on-policy training: a weighted mixture of terms, with a state that a checkpoint keeps."""

    @property
    def digest(self) -> str:
        """Names terms, weights, normalisation and models: a run resumes only under the same reward."""
        ...

    @property
    def max_length(self) -> int | None:
        """Most tokens of prompt and response that every term takes; None: no limit of its own."""
        ...

    def score(self, answers: Completions) -> Scored:
        """Score completions. Raises `RewardError` for what no stated fallback covers."""
        ...

    def calibrate(self, answers: Completions) -> None:
        """Fix what normalisation needs (mean and spread of each term) on completions of π_ref, once."""
        ...

    def state(self) -> dict[str, Any]:
        """The state of the normalisation, JSON-able."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()`."""
        ...


@dataclass(frozen=True, slots=True)
class Judgement:
    """A judge's verdict on the K candidates of one prompt.

    `ranks` (K,): 1 is best, ties share the mean of their places (1, 2.5, 2.5, 4). `wins` (K, K): P(row beats column),
    `wins + wins.T == 1`, ½ on the diagonal; a judge that only orders gives 1, 0 and ½ there.
    """

    ranks: Floats
    wins: Floats


@dataclass(frozen=True, slots=True)
class Verdicts:
    """Judgements of G groups, in order; None if the judge gave no usable answer, which is never guessed.

    `counts` holds what the judging cost and met, such as `requests`, `cached`, `retries`, `unusable`,
    `prompt_tokens`, `completion_tokens`, `seconds`. Those in `SPENDING` differ from one run to the same again, so they
    go through `settle` before anything is kept.
    """

    judgements: Sequence[Judgement | None]
    counts: Mapping[str, float]


SPENDING = frozenset(
    {
        "seconds",  # wall clock
        "request_seconds",  # summed over requests, which overlap
        "requests",
        "retries",
        "cached",
        "cache_corrupt",
        "prompt_tokens",
        "completion_tokens",
        "cost",  # in the currency of the judge's prices
    }
)
"""Counts of `Verdicts` that hang on clocks, servers and caches: never in an artifact, whose bytes they would change."""

_ACCOUNT: ContextVar[Counter[str] | None] = ContextVar("judging account", default=None)


@contextmanager
def judging_account() -> Iterator[Counter[str]]:
    """Collect what judges spend inside the block, by the names of `SPENDING`."""
    account: Counter[str] = Counter()
    token = _ACCOUNT.set(account)
    try:
        yield account
    finally:
        _ACCOUNT.reset(token)


def settle(counts: Mapping[str, float]) -> dict[str, float]:
    """The counts of a judgement less its spending, which goes to the open account, if there is one."""
    account = _ACCOUNT.get()
    if account is not None:
        account.update({name: value for name, value in counts.items() if name in SPENDING})
    return {name: value for name, value in counts.items() if name not in SPENDING}


def rubric_of(judge: object) -> dict[str, Any] | None:
    """Name, version and digest of a judge's instructions, or None for a judge without any (rules, a model)."""
    rubric = getattr(getattr(judge, "inner", judge), "rubric", None)
    if rubric is None:
        return None
    return {"name": rubric.name, "version": rubric.version, "digest": rubric.digest}


class Judge(Protocol):
    """Ranks candidates. A judge says how it is called, what it depends on, and how noisy it was measured to be."""

    @property
    def name(self) -> str:
        """Short name for logs: rule, reward_model, llm."""
        ...

    @property
    def digest(self) -> str:
        """Names rubric, model and settings."""
        ...

    @property
    def noise(self) -> float | None:
        """Measured chance, in [0, ½], that a comparison comes out the wrong way; None: not measured."""
        ...

    def judge(self, prompts: Sequence[Prompt], groups: Sequence[Sequence[str]]) -> Verdicts:
        """Judge G prompts with K candidates each (K may differ). Raises `JudgeError` when it cannot work at all."""
        ...


@dataclass(frozen=True, slots=True)
class Gains:
    """The gains of G groups of K candidates from their judgements.

    `values` (G, K): higher is better, NaN across the whole row of a group without a judgement. `counts` says what the
    conversion met, such as `unjudged` and `tied`.
    """

    values: Floats
    counts: Mapping[str, float]


class GainFunction(Protocol):
    """Turns judgements into gains: winner-takes-all, a schedule, DCG, Bradley-Terry scores."""

    @property
    def digest(self) -> str:
        """Names the kind of gain and its settings: a run resumes only under the same ones."""
        ...

    def __call__(self, judgements: Sequence[Judgement | None], candidates: int) -> Gains:
        """Gains of the groups in order, each of `candidates` texts."""
        ...
