"""Endings of answers, and the judge's view of those that were cut at the limit of tokens.

An answer that was cut is not what people would read: a win rate over such answers says little, and a judge that likes
them teaches a policy never to end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plumbline.tasks.evaluation.measures.estimate import mean
from plumbline.tasks.evaluation.measures.samples import Samples, Scores
from plumbline.tasks.params.evaluation import EvaluationParams

_MOSTLY = 0.95  # share of answers that end by themselves, below which it is worth a warning


def describe_endings(samples: Samples, scores: Scores, params: EvaluationParams, seed: int) -> dict[str, Any]:
    """The judge's win rate by how both answers of a pair ended, and its mean score of answers that ended or were cut.

    `cut_preferred`: of the pairs in which one answer was cut, how often the judge prefers that one, ties half. Each is
    an estimate with its n, null if there is no such pair.
    """
    policy, reference = (
        np.array([completion.finished for completion in side], dtype=np.bool_)
        for side in (samples.policy, samples.reference)
    )  # (n,)
    outcomes = scores.judged.outcomes  # (n,)
    one_cut = policy != reference
    for_cut = np.where(policy, 1 - outcomes, outcomes)  # (n,), of the pairs with one cut: the judge is on its side

    def over(values: NDArray[np.float64], rows: NDArray[np.bool_]) -> dict[str, Any]:
        return mean(values[rows], params, seed)

    every, ended = np.concatenate([scores.policy, scores.reference]), np.concatenate([policy, reference])  # (2n,)
    return {
        "win_rate_both_finished": over(outcomes, policy & reference),
        "win_rate_policy_cut": over(outcomes, ~policy & reference),
        "win_rate_reference_cut": over(outcomes, policy & ~reference),
        "win_rate_both_cut": over(outcomes, ~policy & ~reference),
        "cut_preferred": over(for_cut, one_cut),
        "judge_score_finished": over(every, ended),
        "judge_score_cut": over(every, ~ended),
    }


def warnings_of(metrics: Mapping[str, Any], params: EvaluationParams) -> list[str]:
    """Warnings for a reader of the win rate, from the endings of the answers."""
    found = []
    share = metrics["text"]["policy"]["finished"]["value"]
    reference = metrics["text"]["reference"]["finished"]["value"]
    if share is not None and share < _MOSTLY:
        beside = "" if reference is None else f" ({reference:.1%} of π_ref's)"
        found.append(
            f"{share:.1%} of the policy's answers end by themselves{beside}; the others were cut at "
            f"evaluation.max_new_tokens ({params.max_new_tokens}) and judged so. Raise it, or "
            f"training.max_completion_length, if answers are meant to be longer."
        )
    liking = metrics["endings"]["cut_preferred"]
    if liking["low"] is not None and liking["low"] > 0.5:
        found.append(
            f"The judge prefers the cut answer in {liking['value']:.1%} of the {liking['n']} pairs in which one of two "
            f"was cut: its win rate rewards answers that never end."
        )
    return found
