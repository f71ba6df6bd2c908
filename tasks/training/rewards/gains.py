"""Gains of ranked candidates: what a judge's ranking is worth to each of K candidates of one prompt.

- `winner_takes_all`: 1 for the best, 0 for the others;
- `schedule`: a listed gain a place, such as 1.0, 0.6, 0.3, 0.0;
- `dcg`: 1 / log2(1 + place), as shares of the group's sum (the discount of Järvelin & Kekäläinen 2002, in the form of
  Burges et al. 2005, with equal relevance);
- `bradley_terry`: strengths fitted to the judge's pairwise answers, knowing how often the judge errs.

In the first three, tied candidates share the mean of the places they take up (two winners: ½ each).

Bradley-Terry with a noisy judge. Candidate i truly beats j with probability s(d), d = θ_i - θ_j, s the sigmoid, and the
judge says the contrary of the truth with probability ε, so it answers "i" with probability

    q(d) = (1 - ε) s(d) + ε s(-d) = ε + (1 - 2ε) s(d).

θ maximises Σ_{i<j} [w_ij log q(d) + w_ji log q(-d)] - Σ_i θ_i² / (2τ²), with w the judge's answers and a normal prior
of deviation τ, without which a clean sweep would have no finite maximum. Dividing the noise out of the answers instead,
p = clip((w - ε) / (1 - 2ε), 0, 1), takes an outright vote (0 or 1) for certain whatever ε is; here a vote pulls equal
candidates apart 1 - 2ε times as hard as one of a perfect judge, and not at all at ε = ½.

For ε > 0 the likelihood is not concave. Expectation-maximisation over which answers were errors climbs from θ = 0, each
step the gradient over Böhning's bound of the curvature (Böhning 1992), K/4 + 1/τ². Such a step never lowers the
posterior, and keeps a candidate above another that it beats or equals in every column of w. Naive equivalent:
`scipy.optimize.minimize` of the negative log-posterior, a group at a time; for ε = 0 `choix.opt_pairwise`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import orjson

from plumbline.data_contracts.errors import JudgeError
from plumbline.tasks.models.judging import Floats, Gains, Judgement
from plumbline.tasks.params.gains import GainParams

_TOLERANCE = 1e-9
"""Largest step of a strength (natural logarithm of odds) at which the fit has arrived."""

_MOST_STEPS = 5_000
"""K = 8 and τ = 3 take about 500; a group that is not there by then is as far as it is."""


@dataclass(frozen=True, slots=True)
class JudgedGains:
    """`tasks.models.judging.GainFunction` after `params`; `noise` is that of the judge, in [0, ½)."""

    params: GainParams
    noise: float

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of kind, settings and noise."""
        described = [self.params.model_dump(mode="json"), self.noise]
        return hashlib.sha256(orjson.dumps(described, option=orjson.OPT_SORT_KEYS)).hexdigest()

    def __call__(self, judgements: Sequence[Judgement | None], candidates: int) -> Gains:
        """Gains (G, `candidates`), NaN for a group without a judgement.

        Counts `groups`, `unjudged`, and `tied`: groups that the judge ranks all alike, so that nothing is learned.
        Raises `JudgeError` for a judgement of another number of candidates, or of values that are none.
        """
        judged = [row for row, judgement in enumerate(judgements) if judgement is not None]
        found = [judgement for judgement in judgements if judgement is not None]
        _check(found, candidates)
        values = np.full((len(judgements), candidates), np.nan)
        tied = 0
        if found:
            ranks = np.stack([judgement.ranks for judgement in found])  # (J, K)
            tied = int((np.ptp(ranks, axis=1) == 0).sum())
            if self.params.kind == "bradley_terry":
                wins = np.stack([judgement.wins for judgement in found])  # (J, K, K)
                values[judged] = strengths(wins, self.noise, self.params.prior_std)
            else:
                places = gains_by_place(self.params, candidates)
                values[judged] = [shared(places, row) for row in ranks]
        counts = {"groups": len(judgements), "unjudged": len(judgements) - len(judged), "tied": tied}
        return Gains(values, counts)


def build_gains(params: GainParams, noise: float | None) -> JudgedGains:
    """Gains after params for a judge whose noise was measured as `noise` (None: not measured).

    Raises `JudgeError` if Bradley-Terry scores are asked for and no usable noise is known.
    """
    known = params.noise if params.noise is not None else noise
    if params.kind != "bradley_terry":
        return JudgedGains(params, known or 0.0)
    if known is None:
        raise JudgeError(
            "Bradley-Terry gains weigh answers by the judge's noise, which was not measured. Calibrate the judge on "
            "held-out pairs (judge.calibration_pairs), set judge.gains.noise, or choose another judge.gains.kind."
        )
    if not 0 <= known < 0.5:
        raise JudgeError(
            f"Expected a judge that errs on less than half of the comparisons, found a noise of {known:g}: its answers "
            "say nothing, or the contrary. Choose another judge."
        )
    return JudgedGains(params, known)


def gains_by_place(params: GainParams, candidates: int) -> Floats:
    """Gain of each place (K,), best first, before ties are shared; none of `bradley_terry`."""
    if params.kind == "schedule":
        listed = np.linspace(0.0, 1.0, len(params.schedule))
        read: Floats = np.interp(np.linspace(0.0, 1.0, candidates), listed, params.schedule)
        return read
    if params.kind == "dcg":
        discounts: Floats = 1 / np.log2(1 + np.arange(1, candidates + 1))
        discounts /= discounts.sum()
        return discounts
    winner = np.zeros(candidates)
    winner[0] = 1.0
    return winner


def shared(places: Floats, ranks: Floats) -> Floats:
    """Gains (K,) of candidates with `ranks` (K,; ties equal): tied ones get the mean of the places they take up."""
    _, member, counts = np.unique(ranks, return_inverse=True, return_counts=True)
    starts = np.cumsum(counts) - counts
    means: Floats = np.add.reduceat(places, starts) / counts
    return means[member]


def strengths(wins: Floats, noise: float, prior_std: float) -> Floats:
    """Bradley-Terry strengths θ (G, K), natural log odds with mean 0, from answers `wins` (G, K, K); see the module."""
    candidates = wins.shape[-1]
    precision = prior_std**-2
    votes = wins * (1 - np.eye(candidates))
    theta = np.zeros(wins.shape[:-1])
    for _ in range(_MOST_STEPS):
        true = 1 / (1 + np.exp(theta[:, None, :] - theta[:, :, None]))  # (G, K, K) s(θ_i - θ_j), row beats column
        said = noise + (1 - 2 * noise) * true
        right = (1 - noise) * true / said  # P(i truly beats j | the judge says i)
        # w_ij right_ij + w_ji (1 - right_ji): how often i truly beats j, given the answers
        beats = votes * right + np.swapaxes(votes * (1 - right), 1, 2)
        pull = (beats - (votes + np.swapaxes(votes, 1, 2)) * true).sum(axis=2) - precision * theta
        step = pull / (candidates / 4 + precision)
        theta = theta + step
        if np.abs(step).max(initial=0.0) < _TOLERANCE:
            break
    return theta


def _check(judgements: Sequence[Judgement], candidates: int) -> None:
    for judgement in judgements:
        ranks, wins = judgement.ranks, judgement.wins
        fits = ranks.shape == (candidates,) and wins.shape == (candidates, candidates)
        # NaN fails both comparisons
        if not fits or not np.isfinite(ranks).all() or not bool(((wins >= 0) & (wins <= 1)).all()):
            raise JudgeError(
                f"Expected judgements of {candidates} candidates with finite ranks and wins in [0, 1], found ranks "
                f"{ranks.tolist()[:8]} and wins of shape {wins.shape}. The judge is broken: report it."
            )
