"""Surface figures of completions: length, share finished, diversity."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, pairwise
from typing import Any, Protocol

from plumbline.tasks.evaluation.measures.estimate import mean, proportion
from plumbline.tasks.params.evaluation import EvaluationParams


class Sampled(Protocol):
    """The part of a sampled completion that is described here."""

    @property
    def text(self) -> str: ...  # noqa: D102
    @property
    def token_ids(self) -> Sequence[int]: ...  # noqa: D102
    @property
    def finished(self) -> bool: ...  # noqa: D102


def describe(completions: Sequence[Sampled], params: EvaluationParams, seed: int) -> dict[str, Any]:
    """Lengths in tokens (with the end token) and words, share that ended by itself, distinct-1 and distinct-2."""
    words = [completion.text.lower().split() for completion in completions]
    return {
        "tokens": mean([len(completion.token_ids) for completion in completions], params, seed),
        "words": mean([len(found) for found in words], params, seed),
        "finished": proportion([completion.finished for completion in completions], params),
        "empty": sum(not found for found in words),
        "distinct_1": distinct(words),
        "distinct_2": distinct([list(pairwise(found)) for found in words]),
    }


def distinct(ngrams: Iterable[Sequence[object]]) -> float | None:
    """Distinct n-grams over all n-grams of the whole sample (Li et al. 2016, arXiv:1510.03055).

    It falls as the sample grows, so it compares policies on the same prompts only. None without n-grams.
    """
    found = list(chain.from_iterable(ngrams))
    return len(set(found)) / len(found) if found else None
