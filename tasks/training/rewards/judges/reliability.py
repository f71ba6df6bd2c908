"""Reliability of a judge, measured against people on held-out labelled pairs, before anything is trained on it.

Each pair is asked in both orders, (chosen, rejected) and (rejected, chosen), so that "the first one" is the right
answer exactly half of the time and a judge that always says it agrees with people no more than chance:

1. agreement: Cohen's κ of "first" or "second" (people) against "first", "second" or "tie" (judge), over all usable
   answers. Without ties it is 2 · accuracy - 1;
2. accuracy: share of usable answers for the response people chose, ties half, a pair's two orders averaged, with a
   95 % interval at the effective number of pairs; noise ε = 1 - accuracy, at most ½, is what `gains` weigh answers by.
   It is noise against labels: where people err themselves, the judge errs on the truth less often than that;
3. position bias: |share of answers for the first - share for the second|, and `flips`, the share of pairs on which the
   answer changes with the order. A judge that draws positions of its own reports in its counts what it saw of them:
   `decided` answers, `first_shown_won`, `swapped_pairs`, `order_conflicts`; these count, not the order asked in here;
4. unusable: the share of questions without an answer, which is counted and never guessed.
"""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from plumbline.data_contracts.errors import JudgeError, JudgeRefused
from plumbline.data_contracts.records import CuratedPair
from plumbline.data_contracts.rounding import rounded
from plumbline.tasks.models.judging import Floats, Judge, Judgement, Prompt, Verdicts, rubric_of, settle
from plumbline.tasks.params.judge import JudgeParams
from plumbline.tasks.statistics import clustered_interval


@dataclass(frozen=True, slots=True)
class MeasuredJudge:
    """A judge together with the noise that was measured: `tasks.models.judging.Judge`."""

    inner: Judge
    noise: float | None

    @property
    def name(self) -> str:
        """The judge's own."""
        return self.inner.name

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the judge's digest and its noise, which decides what its answers are worth."""
        return hashlib.sha256(orjson.dumps([self.inner.digest, self.noise])).hexdigest()

    def judge(self, prompts: Sequence[Prompt], groups: Sequence[Sequence[str]]) -> Verdicts:
        """The judge's verdicts."""
        return self.inner.judge(prompts, groups)


def calibrate(judge: Judge, pairs: Sequence[CuratedPair], count: int, seed: int) -> dict[str, Any]:
    """Measure a judge on at most `count` held-out pairs, drawn with the seed; JSON-able.

    Figures that need answers are None if there is none. Raises `JudgeError` on no pairs, or where the judge cannot
    work at all.
    """
    if not pairs:
        raise JudgeError("Expected held-out labelled pairs to measure the judge on, found none. Enlarge that split.")
    rows = sorted(random.Random(seed).sample(range(len(pairs)), min(count, len(pairs))))
    drawn = [pairs[row] for row in rows]
    wins, counts = _ask(judge, drawn)  # (2, N): P(first beats second) in both orders, NaN where unusable
    accuracy = _accuracy(wins, drawn)
    return {
        "judge": judge.name,
        "digest": judge.digest,
        **({"rubric": rubric} if (rubric := rubric_of(judge)) else {}),
        "pairs": len(drawn),
        "answers": int(np.isfinite(wins).sum()),
        "unusable": float(np.isnan(wins).mean()),
        "ties": _share(wins == 0.5, wins),
        "kappa": _kappa(wins),
        "accuracy": accuracy,
        "noise": _noise(accuracy),
        "position": _own_positions(counts) if "decided" in counts else _position(wins),
        "by_annotator": _by_annotator(wins, drawn),
        "counts": dict(counts),
    }


def require_reliable(report: Mapping[str, Any], params: JudgeParams) -> None:
    """Raise `JudgeError`, naming every threshold missed, for a judge that is worse than params allow."""
    kappa, bias, unusable = report["kappa"], report["position"]["bias"], report["unusable"]
    missed = []
    if unusable > params.max_unusable:
        shown = rounded(unusable, params.max_unusable, ".3f")
        missed.append(f"unusable answers {shown} above judge.max_unusable {params.max_unusable:.15g}")
    if kappa is None:
        missed.append("no usable answer to measure agreement by")
    elif kappa < params.min_kappa:
        missed.append(f"kappa {rounded(kappa, params.min_kappa, '.3f')} below judge.min_kappa {params.min_kappa:.15g}")
    if bias is not None and bias > params.max_position_bias:
        shown = rounded(bias, params.max_position_bias, ".3f")
        missed.append(f"position bias {shown} above judge.max_position_bias {params.max_position_bias:.15g}")
    if missed:
        raise JudgeRefused(
            f"Expected a judge that agrees with people on {report['pairs']} held-out pairs, found the judge "
            f"{report['judge']} with {'; '.join(missed)}. Take another judge or rubric, look at its answers, or lower "
            "the threshold if you mean to train on it all the same."
        )


def _ask(judge: Judge, pairs: Sequence[CuratedPair]) -> tuple[Floats, Mapping[str, float]]:
    """P(first beats second) of each pair (2, N): chosen first, then rejected first; and the judge's counts, settled."""
    prompts = [pair.prompt for pair in pairs]
    orders = [(pair.chosen, pair.rejected) for pair in pairs] + [(pair.rejected, pair.chosen) for pair in pairs]
    verdicts = judge.judge([*prompts, *prompts], orders)
    if len(verdicts.judgements) != len(orders):
        raise JudgeError(
            f"Expected {len(orders)} judgements of the judge {judge.name}, one a question, found "
            f"{len(verdicts.judgements)}. The judge is broken: report it."
        )
    wins = np.array([_first(judgement) for judgement in verdicts.judgements], dtype=np.float64)
    return wins.reshape(2, len(pairs)), settle(verdicts.counts)


def _first(judgement: Judgement | None) -> float:
    return float("nan") if judgement is None else float(judgement.wins[0, 1])


def _votes(wins: Floats) -> Floats:
    """1 for the first, 0 for the second, ½ for a tie; NaN stays."""
    return (np.sign(wins - 0.5) + 1) / 2


def _right(wins: Floats) -> Floats:
    """Votes for the chosen response (2, N)."""
    votes = _votes(wins)
    return np.stack([votes[0], 1 - votes[1]])


def _by_pair(right: Floats) -> tuple[Floats, NDArray[np.intp]]:
    """Mean of each pair's usable answers, and which rows (pairs) they belong to."""
    usable: NDArray[np.intp] = np.flatnonzero(np.isfinite(right).any(axis=0)).astype(np.intp)
    return np.nanmean(right[:, usable], axis=0), usable


def _kappa(wins: Floats) -> float | None:
    from sklearn.metrics import cohen_kappa_score

    votes = _votes(wins)
    usable = np.isfinite(votes)
    if not usable.any():
        return None
    labels = np.repeat([[2], [0]], wins.shape[1], axis=1)  # in half votes: 2 first, 1 tie, 0 second
    kappa = float(cohen_kappa_score(labels[usable], (2 * votes[usable]).astype(int), labels=[0, 1, 2]))
    return kappa if np.isfinite(kappa) else None


def _accuracy(wins: Floats, pairs: Sequence[CuratedPair]) -> dict[str, Any]:
    outcomes, usable = _by_pair(_right(wins))
    if not len(outcomes):
        return {"n": 0, "value": None, "low": None, "high": None}
    low, high = clustered_interval(outcomes, [pairs[row].cluster for row in usable])
    return {"n": len(outcomes), "value": float(outcomes.mean()), "low": low, "high": high}


def _noise(accuracy: Mapping[str, Any]) -> dict[str, Any]:
    """ε = 1 - accuracy and its interval, each at most ½: beyond, answers say nothing."""
    if accuracy["value"] is None:
        return {"value": None, "low": None, "high": None}
    value, low, high = (min(0.5, 1 - accuracy[name]) for name in ("value", "high", "low"))
    return {"value": value, "low": low, "high": high}


def _position(wins: Floats) -> dict[str, Any]:
    votes = _votes(wins)
    usable = np.isfinite(votes)
    first = float(votes[usable].mean()) if usable.any() else None
    both = usable.all(axis=0)
    flips = votes[0, both] != 1 - votes[1, both]
    return {
        "first": first,
        "bias": None if first is None else abs(2 * first - 1),
        "flips": float(flips.mean()) if len(flips) else None,
    }


def _own_positions(counts: Mapping[str, float]) -> dict[str, Any]:
    """Position bias by what the judge itself showed where."""
    first = counts["first_shown_won"] / counts["decided"] if counts["decided"] else None
    swapped = counts.get("swapped_pairs", 0)
    return {
        "first": first,
        "bias": None if first is None else abs(2 * first - 1),
        "flips": counts["order_conflicts"] / swapped if swapped else None,
    }


def _by_annotator(wins: Floats, pairs: Sequence[CuratedPair]) -> dict[str, dict[str, Any]]:
    """Agreement with each annotator: a judge may share the taste of some of them only."""
    outcomes, usable = _by_pair(_right(wins))
    of: dict[str, list[float]] = defaultdict(list)
    for outcome, row in zip(outcomes.tolist(), usable.tolist(), strict=True):
        if (name := pairs[row].annotator) is not None:
            of[name].append(outcome)
    return {name: {"n": len(of[name]), "accuracy": float(np.mean(of[name]))} for name in sorted(of)}


def _share(flags: Any, wins: Floats) -> float | None:
    usable = np.isfinite(wins)
    return float(flags[usable].mean()) if usable.any() else None
