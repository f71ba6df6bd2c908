"""The examination: votes and what curation made of them go in, the report and the pairs to look at again come out.

1. group votes into units             `units`
2. agreement, ceiling                 `agreement`
3. skill of annotators, suspicions    `skill`, `annotators`
4. label leak                         `leak`
5. pairs worth a second look          `second_look`

Not covered: bias that all annotators share. Agreement does not show it, and no figure here is about truth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from plumbline.data_contracts.progress import Progress, silent
from plumbline.data_contracts.records import CuratedPair, Message, PreferencePair
from plumbline.tasks.data.clinic.agreement import alpha, ceiling, raw_agreement
from plumbline.tasks.data.clinic.annotators import LEVEL, describe_annotators
from plumbline.tasks.data.clinic.estimate import Estimate, missing, share
from plumbline.tasks.data.clinic.leak import leak
from plumbline.tasks.data.clinic.second_look import Evidence, rank_doubts, to_label, with_reasons
from plumbline.tasks.data.clinic.skill import dawid_skene, noisy_bradley_terry
from plumbline.tasks.data.clinic.units import TIE, Units, group_votes
from plumbline.tasks.data.curation.contradictions import REASON as CONTRADICTION
from plumbline.tasks.data.curation.curate import Curated
from plumbline.tasks.data.feedback.votes import VotesRead
from plumbline.tasks.params.curation import MatchingParams

Score = Callable[[Sequence[Sequence[Message]], Sequence[str]], Sequence[float | None]]
"""Rewards of responses to prompts; None for what the model cannot read."""

_STEPS = 5


@dataclass(frozen=True, slots=True)
class Examined:
    """The report (JSON-able), the rows to label again, and the same pairs with reasons."""

    report: dict[str, Any]
    rows: list[dict[str, Any]]
    reasons: list[dict[str, Any]]


def examine(
    read: VotesRead,
    curated: Curated,
    matching: MatchingParams,
    seed: int,
    *,
    most: int,
    score: Score | None = None,
    progress: Progress = silent,
) -> Examined:
    """Examine labels. Deterministic in its arguments; at most `most` pairs are named for a second look.

    `score` is the reward model, if there is one.
    """
    progress(0, _STEPS, "grouping votes")
    units = group_votes(read.votes, matching)
    progress(1, _STEPS, "agreement")
    report: dict[str, Any] = {
        "read": {"rows": read.read, "pairs": len(read.pairs), "ties": read.ties, "set_aside": read.set_aside},
        "votes": _votes(units),
        "alpha": alpha(units, seed),
        "agreement": raw_agreement(units, seed),
        "ceiling": ceiling(units, seed),
    }
    progress(2, _STEPS, "annotators")
    skilled, noisy = dawid_skene(units), noisy_bradley_terry(units)
    people = describe_annotators(units, skilled, noisy)
    report["annotators"] = {"level": LEVEL, "why": _why_nobody(people), "listed": people}
    progress(3, _STEPS, "label leak")
    pairs = [pair for split in (curated.train, curated.validation, curated.test) for pair in split]
    at = {name: unit for unit, ids in enumerate(units.ids) for name in ids}
    report["position"] = _position(units)
    report["leak"] = _leak(units, pairs, at, seed)
    progress(4, _STEPS, "pairs worth a second look")
    labels = _labels(units, pairs, curated, at)
    doubts = rank_doubts(units, labels, skilled, Evidence(_rewards(units, labels, score), _opposed(curated)))
    report["second_look"] = {"doubtful": len(doubts), "listed": len(doubts[:most]), "reward_model": score is not None}
    progress(_STEPS, _STEPS, "examined")
    return Examined(report, to_label(units, doubts[:most], seed), with_reasons(units, doubts[:most]))


def _votes(units: Units) -> dict[str, Any]:
    """The number of votes, of units and of annotators, and what single annotators said twice."""
    counts = units.counts()
    return {
        "votes": len(units.unit),
        "ties": int(counts[:, TIE].sum()),
        "unsigned": int((units.annotator < 0).sum()),
        "annotators": len(units.annotators),
        "units": len(units.pairs),
        "judged_twice": int((counts.sum(axis=1) > 1).sum()),
        "repeats": units.repeats,
        "changed": units.changed,
    }


def _why_nobody(people: Sequence[Mapping[str, Any]]) -> str | None:
    if not people:
        return "not enough data: no row names its annotator"
    return "not enough data: one annotator, with nobody to compare with" if len(people) == 1 else None


def _position(units: Units) -> Estimate:
    """The share of preferences for the response that the row shows first."""
    known = (units.shown >= 0) & (units.side != TIE)
    hits = int((units.shown == units.side)[known].sum())
    n = int(known.sum())
    if n == 0:
        return missing("not enough data: no row says which response was shown first")
    if hits in (0, n):
        side = "first" if hits else "second"
        return missing(f"not enough data: every label is for the {side} response, so the file keeps no order", n)
    return share(hits, n)


def _leak(units: Units, pairs: Sequence[CuratedPair], at: Mapping[str, int], seed: int) -> dict[str, Any]:
    """The label leak of curated pairs, each with its unit's sides as left and right."""
    shown = np.full(len(units.pairs), -1, dtype=np.int64)
    if _position(units)["value"] is not None:
        shown[units.unit] = units.shown
    place = np.array([at[pair.id] for pair in pairs], dtype=np.int64)
    label = np.array([_label(units, pair, int(unit)) for pair, unit in zip(pairs, place, strict=True)], dtype=np.int64)
    two = [(pair.chosen, pair.rejected) for pair in pairs]
    left = [each[side] for each, side in zip(two, label, strict=True)]
    right = [each[1 - side] for each, side in zip(two, label, strict=True)]
    return leak(left, right, label, shown[place], [pair.cluster for pair in pairs], seed)


def _label(units: Units, pair: PreferencePair, unit: int) -> int:
    """The side of `chosen`; by the votes if its text is not that of the unit."""
    if pair.chosen in units.sides[unit]:
        return units.sides[unit].index(pair.chosen)
    votes = np.bincount(units.side[units.unit == unit], minlength=3)
    return int(votes[1] > votes[0])


def _labels(units: Units, pairs: Sequence[CuratedPair], curated: Curated, at: Mapping[str, int]) -> dict[int, int]:
    """The label of each unit that is curated, or whose votes contradict each other so that it is in no split."""
    found = {at[pair.id]: _label(units, pair, at[pair.id]) for pair in pairs}
    for row in curated.quarantined:
        if row.reason == CONTRADICTION:
            pair = PreferencePair.model_validate_json(row.raw)
            found.setdefault(at[pair.id], _label(units, pair, at[pair.id]))
    return found


def _opposed(curated: Curated) -> frozenset[str]:
    """Ids of pairs whose near prompts have the opposite preference."""
    listed = curated.report["opposed_near_prompts"]["listed"]
    return frozenset(name for group in listed for side in group["ids"] for name in side)


def _rewards(units: Units, labels: Mapping[int, int], score: Score | None) -> dict[int, tuple[float, float]]:
    """Rewards of both sides of each unit, where the model can read both."""
    if score is None:
        return {}
    prompts = [units.pairs[unit].prompt for unit in labels]
    first, second = (score(prompts, [units.sides[unit][side] for unit in labels]) for side in (0, 1))
    rows = zip(labels, first, second, strict=True)
    return {unit: (one, two) for unit, one, two in rows if one is not None and two is not None}
