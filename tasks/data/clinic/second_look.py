"""The pairs most worth a second look, and the files in which people or a judge look at them again.

Each candidate is ranked by its log odds that the label is wrong, in nats: evidence of several kinds, added up as if
they were independent.

- votes: log P(other side) / P(label) of the Dawid-Skene posterior; without one, of the votes plus a half each;
- the reward model, if there is one: reward of the rejected less that of the chosen, which is the log odds by
  Bradley-Terry, held within REWARD_LIMIT;
- a near prompt with the opposite preference for the same responses: NEAR; a margin among the lowest: THIN. These
  two are chosen, not estimated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np

from plumbline.tasks.data.clinic.skill import DawidSkene
from plumbline.tasks.data.clinic.units import TIE, Units

NEAR = 1.0
THIN = 0.5
REWARD_LIMIT = 6.0
THIN_SHARE = 0.1
"""Share of pairs whose margin counts as low."""

_LEAST_CHANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Evidence:
    """Facts beside the votes: `rewards` of both sides by unit, and ids that near prompts oppose."""

    rewards: Mapping[int, tuple[float, float]]
    opposed: frozenset[str]


@dataclass(frozen=True, slots=True)
class Doubt:
    """A unit that is worth a second look: its label (a side), the log odds that it is wrong, and why."""

    unit: int
    label: int
    log_odds: float
    reasons: tuple[str, ...]


def rank_doubts(units: Units, labels: Mapping[int, int], skilled: DawidSkene | None, evidence: Evidence) -> list[Doubt]:
    """Every unit of `labels` (unit -> side) for which there is a reason to doubt, the most doubtful first."""
    counts = units.counts()
    thin = _thin(units, labels)
    found = [
        _doubt(units, unit, label, counts[unit], skilled, evidence, unit in thin) for unit, label in labels.items()
    ]
    return sorted((doubt for doubt in found if doubt.reasons), key=lambda doubt: (-doubt.log_odds, doubt.unit))


def _doubt(
    units: Units,
    unit: int,
    label: int,
    counts: np.ndarray[Any, Any],
    skilled: DawidSkene | None,
    evidence: Evidence,
    thin: bool,
) -> Doubt:
    odds, reasons = _by_votes(unit, label, counts, skilled), []
    if counts.sum() > counts[label]:
        reasons.append(f"{int(counts[label])} of {int(counts.sum())} votes are for the label")
    if unit in evidence.rewards:
        gap = float(
            np.clip(evidence.rewards[unit][1 - label] - evidence.rewards[unit][label], -REWARD_LIMIT, REWARD_LIMIT)
        )
        odds += gap
        if gap > 0:
            reasons.append(f"the reward model prefers the other response by {gap:.1f} nats")
    if units.ids[unit] & evidence.opposed:
        odds += NEAR
        reasons.append("a near prompt has the opposite preference")
    if thin:
        odds += THIN
        reasons.append("the margin is among the lowest")
    return Doubt(unit, label, odds, tuple(reasons))


def _by_votes(unit: int, label: int, counts: np.ndarray[Any, Any], skilled: DawidSkene | None) -> float:
    if skilled is not None and not np.isnan(skilled.posterior[unit]).any():
        chances = np.maximum(skilled.posterior[unit], _LEAST_CHANCE)
        return float(np.log(chances[1 - label] / chances[label]))
    return float(np.log((counts[1 - label] + 0.5) / (counts[label] + 0.5)))


def _thin(units: Units, labels: Mapping[int, int]) -> set[int]:
    """Units with a margin among the lowest share of those that have one; empty if margins are all alike."""
    margins = {unit: units.pairs[unit].metadata.get("margin") for unit in labels}
    known = {unit: abs(float(m)) for unit, m in margins.items() if isinstance(m, (int, float))}
    if len(set(known.values())) < 2:
        return set()
    limit = float(np.quantile(list(known.values()), THIN_SHARE))
    return {unit for unit, margin in known.items() if margin <= limit and margin < max(known.values())}


def to_label(units: Units, doubts: Sequence[Doubt], seed: int) -> list[dict[str, Any]]:
    """Rows that people or a judge label: prompt, two responses in an order drawn by `seed`, an empty label.

    Nothing in them says what the label is or was. `plumbline ingest` reads them once `label` is a, b or tie.
    """
    rows = []
    for doubt in doubts:
        name = units.digest(doubt.unit)
        two = sorted(units.sides[doubt.unit])
        if Random(f"{seed}/{name}").random() < 0.5:
            two.reverse()
        prompt = [message.model_dump() for message in units.pairs[doubt.unit].prompt]
        unnamed = {"label": None, "annotator": None, "metadata": {"clinic": name}}
        rows.append({"prompt": prompt, "response_a": two[0], "response_b": two[1], **unnamed})
    return sorted(rows, key=lambda row: row["metadata"]["clinic"])


def with_reasons(units: Units, doubts: Sequence[Doubt]) -> list[dict[str, Any]]:
    """The same pairs for the owner of the data, the most doubtful first: ids, label, votes, log odds and reasons."""
    counts = units.counts()
    return [
        {
            "clinic": units.digest(doubt.unit),
            "ids": sorted(units.ids[doubt.unit]),
            "label": units.sides[doubt.unit][doubt.label],
            "votes": {
                "label": int(counts[doubt.unit, doubt.label]),
                "other": int(counts[doubt.unit, 1 - doubt.label]),
                "tie": int(counts[doubt.unit, TIE]),
            },
            "log_odds": doubt.log_odds,
            "reasons": list(doubt.reasons),
        }
        for doubt in doubts
    ]
