"""Skill of annotators, by two models of how they err. Both need annotators who judged the same units.

Dawid & Skene (1979, Applied Statistics 28:20-28), by crowd-kit: each unit has a true label, and each annotator a
confusion matrix. Skill is the chance of the true label, over the prior of labels.

The noisy Bradley-Terry model (Bugakova et al. 2019, arXiv:1912.05337): each response has a score s. Each annotator
judges by the scores with chance g, their skill, and else by position, naming the first with chance q:

    P(i before j) = g sigmoid(s_i - s_j) + (1 - g) q, with i shown first.

It also uses annotators who judged the same responses in other pairs. It is fitted here: crowd-kit 1.4.2 writes its
gradients of q and g into the wrong places, so that the last annotator's skill never leaves its random start.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from plumbline.data_contracts.extras import needs_extra
from plumbline.tasks.data.clinic.estimate import F64, I64
from plumbline.tasks.data.clinic.units import TIE, Units

PENALTY = 0.1
"""Weight of the squared scores and logits of g and q: a response that was always preferred stays finite."""

_ROUNDS = 200


@dataclass(frozen=True, slots=True, eq=False)
class DawidSkene:
    """`skill` (J,) of each annotator, NaN for one without a shared unit; `posterior` (U, 3) of each unit's label.

    The posterior is NaN for units with fewer than two signed votes.
    """

    skill: F64
    posterior: F64


def dawid_skene(units: Units) -> DawidSkene | None:
    """Fit the model to units with two or more signed votes; None if there are none."""
    with needs_extra("clinic", "plumbline clinic"):
        from crowdkit.aggregation import DawidSkene as Model
    import pandas as pd

    signed = np.flatnonzero(units.annotator >= 0)
    several = np.bincount(units.unit[signed], minlength=len(units.pairs)) > 1
    rows = signed[several[units.unit[signed]]]
    if not len(rows):
        return None
    table = pd.DataFrame({"task": units.unit[rows], "worker": units.annotator[rows], "label": units.side[rows]})
    model = Model(n_iter=_ROUNDS).fit(table)
    skill = np.full(len(units.annotators), np.nan)
    posterior = np.full((len(units.pairs), 3), np.nan)
    posterior[several] = 0.0
    for label in model.probas_.columns:
        posterior[model.probas_.index.to_numpy(), label] = model.probas_[label].to_numpy()
    for worker, errors in model.errors_.groupby(level="worker"):
        own = errors.droplevel("worker")
        labels = [label for label in own.columns if label in own.index]
        skill[worker] = sum(float(own.loc[label, label]) * float(model.priors_[label]) for label in labels)
    return DawidSkene(skill, posterior)


@dataclass(frozen=True, slots=True, eq=False)
class NoisyBradleyTerry:
    """Of each annotator (J,): `skill` g and `first` q, the chance to name the first shown where not judging."""

    skill: F64
    first: F64


def noisy_bradley_terry(units: Units) -> NoisyBradleyTerry | None:
    """Fit the model to signed votes that are no ties; None if no response was judged by two annotators.

    Where the row does not say which response came first, side 0 counts as first.
    """
    from scipy.optimize import minimize

    rows = np.flatnonzero((units.annotator >= 0) & (units.side != TIE))
    names, responses = _responses(units, rows)
    if not _shared(names, units.annotator[rows]):
        return None
    first = np.maximum(units.shown[rows], 0)  # (n,)
    pick = np.arange(len(rows))
    compared = np.stack([names[pick, first], names[pick, 1 - first]], axis=1)  # (n, 2): shown first, shown second
    won = np.where(units.side[rows] == first, 1.0, -1.0)
    shape = responses, len(units.annotators)
    start = np.concatenate([np.zeros(responses), np.ones(shape[1]), np.zeros(shape[1])])
    args = compared, units.annotator[rows], won, shape
    found = minimize(loss, start, args=args, jac=True, method="L-BFGS-B", options={"maxiter": _ROUNDS}).x
    _, gamma, q = np.split(found, np.cumsum(shape))
    return NoisyBradleyTerry(_sigmoid(gamma), _sigmoid(q))


def loss(x: F64, compared: I64, worker: I64, won: F64, shape: tuple[int, int]) -> tuple[float, F64]:
    """Penalised negative log likelihood of the noisy Bradley-Terry model, in nats, and its gradient.

    x: (R + 2J,) scores, logits of g, logits of q. compared: (n, 2) responses shown first and second; worker: (n,);
    won: (n,) 1 if the first was preferred, -1 if the second.
    """
    scores, gamma, q = np.split(x, np.cumsum(shape))
    by_score = _sigmoid(won * (scores[compared[:, 0]] - scores[compared[:, 1]]))  # (n,)
    by_place = _sigmoid(won * q[worker])  # (n,)
    judging = _sigmoid(gamma)[worker]  # (n,)
    chance = judging * by_score + (1 - judging) * by_place
    slope = judging * by_score * (1 - by_score) * won / chance  # d log(chance) / d score of the first
    gradient = PENALTY * x
    np.add.at(gradient, compared[:, 0], -slope)
    np.add.at(gradient, compared[:, 1], slope)
    offset = shape[0] + worker
    np.add.at(gradient, offset, -judging * (1 - judging) * (by_score - by_place) / chance)
    np.add.at(gradient, offset + shape[1], -(1 - judging) * by_place * (1 - by_place) * won / chance)
    return float(-np.log(chance).sum() + PENALTY / 2 * (x**2).sum()), gradient


def _responses(units: Units, rows: I64) -> tuple[I64, int]:
    """The number of each vote's two responses, by side (n, 2), and how many responses there are.

    A response is its text under its prompt, so that it is the same one in other pairs.
    """
    number: dict[Hashable, int] = {}
    table = np.zeros((len(units.pairs), 2), dtype=np.int64)
    for place in np.unique(units.unit[rows]):
        for side, text in enumerate(units.sides[place]):
            table[place, side] = number.setdefault((units.pairs[place].prompt, text), len(number))
    return table[units.unit[rows]], len(number)


def _shared(names: I64, worker: I64) -> bool:
    """True if two annotators judged one response."""
    seen: dict[int, int] = {}
    both = ((int(name), int(own)) for two, own in zip(names, worker, strict=True) for name in two)
    return any(seen.setdefault(name, own) != own for name, own in both)


def _sigmoid(x: F64) -> F64:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -500, 500))), dtype=np.float64)
