"""Win rate of the policy over the reference: position-swapped, ties half, raw and length-controlled.

A judge is any `Compare`: it sees a prompt and two responses and says how likely the first is the
better one. It is asked in both orders, since judges that read favour a position (Zheng et al.
2023, arXiv:2306.05685, section 3.3); a pointwise score agrees with itself by construction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from plumbline.data_contracts.errors import ModelError
from plumbline.data_contracts.records import Message
from plumbline.tasks.evaluation.measures.estimate import Estimate, mean
from plumbline.tasks.params.evaluation import EvaluationParams

Prompt = Sequence[Message]
Score = Callable[[Sequence[Prompt], Sequence[str]], Sequence[float]]
Compare = Callable[[Sequence[Prompt], Sequence[str], Sequence[str]], ArrayLike]
Floats = NDArray[np.float64]

_RIDGE = 1e-2
_NEWTON_STEPS = 50


@dataclass(frozen=True, slots=True)
class JudgedPrompts:
    """`outcomes` (n,) in [0, 1]: P(policy wins), mean of both positions; `consistent` (n,): both agree."""

    outcomes: Floats
    consistent: NDArray[np.bool_]


class Pointwise:
    """A score of single responses as a `Compare`: 1 where the first scores higher, 0 lower, ½ equal.

    Each (prompt, response) is scored once, in whatever position and policy it appears.
    """

    def __init__(self, score: Score, name: str):
        self._score = score
        self._name = name
        self._known: dict[tuple[tuple[Message, ...], str], float] = {}

    def scores(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Floats:
        """Scores (n,). Raises `ModelError` when the score returns another count or a value that is not finite."""
        keys = [(tuple(prompt), response) for prompt, response in zip(prompts, responses, strict=True)]
        new = {key: row for row, key in enumerate(keys) if key not in self._known}
        if new:
            found = self._score([prompts[row] for row in new.values()], [responses[row] for row in new.values()])
            self._check(found, len(new))
            self._known.update(zip(new, map(float, found), strict=True))
        return np.array([self._known[key] for key in keys], dtype=np.float64)

    def __call__(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> Floats:
        """P(first wins), (n,) in {0, ½, 1}."""
        return (np.sign(self.scores(prompts, first) - self.scores(prompts, second)) + 1) / 2

    def _check(self, found: Sequence[float], expected: int) -> None:
        bad = [value for value in found if not np.isfinite(value)]
        if len(found) != expected or bad:
            raise ModelError(
                f"expected {expected} finite scores from {self._name}, found {len(found)} with {len(bad)} not finite "
                f"(e.g. {bad[:3]}). Train the reward model again, at a lower learning rate if it diverged."
            )


def judge_both_positions(
    compare: Compare, prompts: Sequence[Prompt], policy: Sequence[str], reference: Sequence[str]
) -> JudgedPrompts:
    """Ask the judge with the policy first, then second, and average."""
    forward = np.asarray(compare(prompts, policy, reference), dtype=np.float64)
    backward = 1 - np.asarray(compare(prompts, reference, policy), dtype=np.float64)
    for answers in (forward, backward):
        if answers.shape != (len(prompts),) or not ((answers >= 0) & (answers <= 1)).all():
            raise ModelError(
                f"expected {len(prompts)} probabilities from the judge, found shape {answers.shape} "
                f"(e.g. {answers.ravel()[:3].tolist()})."
            )
    return JudgedPrompts((forward + backward) / 2, np.sign(forward - 0.5) == np.sign(backward - 0.5))


def win_rate(judged: JudgedPrompts, length_difference: Floats, params: EvaluationParams, seed: int) -> dict[str, Any]:
    """Win rate with its paired-bootstrap interval, ties, swap consistency, and the length-controlled rate."""
    raw: dict[str, Any] = mean(judged.outcomes, params, seed)
    return raw | {
        "ties": int((judged.outcomes == 0.5).sum()),
        "swap_consistency": float(judged.consistent.mean()) if judged.consistent.size else None,
        "length_controlled": length_controlled(judged.outcomes, length_difference, params.confidence),
    }


def length_controlled(outcomes: Floats, length_difference: Floats, confidence: float) -> Estimate:
    """Win rate at equal length: sigmoid of the intercept of a logistic regression on the length difference.

    After AlpacaEval-LC (Dubois et al. 2024, arXiv:2404.04475, eq. 3): the length enters as
    tanh(difference / its standard deviation); their term for the difficulty of an instruction, which
    needs many models, is left out. Ties and soft judgements enter as fractional outcomes, hence the
    sandwich standard error (Papke & Wooldridge 1996). A ridge of 0.01 keeps the fit finite when one
    side wins every prompt.

    outcomes: (n,) in [0, 1]; length_difference: (n,), policy minus reference, in characters as in AlpacaEval.
    """
    from scipy.special import expit, ndtri

    n = int(outcomes.size)
    if n == 0:
        return {"value": None, "low": None, "high": None, "n": 0}
    spread = float(length_difference.std())
    length = np.tanh(length_difference / spread) if spread > 0 else np.zeros(n)
    design = np.stack([np.ones(n), length], axis=1)  # (n, 2)
    coefficients, covariance = _fit_fractional_logit(design, outcomes)
    reach = float(ndtri(0.5 + confidence / 2)) * float(covariance[0, 0]) ** 0.5
    low, value, high = (float(expit(coefficients[0] + shift)) for shift in (-reach, 0.0, reach))
    return {"value": value, "low": low, "high": high, "n": n}


def _fit_fractional_logit(design: Floats, outcomes: Floats) -> tuple[Floats, Floats]:
    """Newton's method on the ridged log-likelihood; returns coefficients (k,) and sandwich covariance (k, k)."""
    from scipy.special import expit

    ridge = _RIDGE * np.eye(design.shape[1])
    coefficients = np.zeros(design.shape[1])
    for _ in range(_NEWTON_STEPS):
        fitted = expit(design @ coefficients)  # (n,)
        gradient = design.T @ (outcomes - fitted) - ridge @ coefficients
        bread = np.linalg.inv((design * (fitted * (1 - fitted))[:, None]).T @ design + ridge)
        step = bread @ gradient
        # a full step can overshoot where every fitted probability is near 0 or 1
        coefficients = coefficients + step * min(1.0, 2.0 / max(float(np.abs(step).max()), 1e-300))
        if float(np.abs(step).max()) < 1e-10:
            break
    scores = design * (outcomes - expit(design @ coefficients))[:, None]  # (n, k)
    return coefficients, bread @ (scores.T @ scores) @ bread
