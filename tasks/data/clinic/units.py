"""Units: votes grouped by prompt and unordered pair of responses, as columns.

A unit's two responses are its sides 0 and 1, in the order of a hash of their texts, so that neither who was preferred
nor which came first decides which is which. A vote is for side 0, for side 1, or a tie (2).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from plumbline.data_contracts.records import PreferencePair
from plumbline.tasks.data.clinic.estimate import F64, I64
from plumbline.tasks.data.curation.pair_texts import PairContent, contents
from plumbline.tasks.data.curation.verdicts import Item, parse_time
from plumbline.tasks.data.feedback.votes import Vote
from plumbline.tasks.params.curation import MatchingParams

TIE = 2


@dataclass(frozen=True, slots=True, eq=False)
class Units:
    """U units and their n votes.

    `unit`, `side`, `annotator` (-1: nobody signed), `shown` (side that the row shows first, -1: unknown): (n,).
    `time`: (n,) seconds, NaN if unknown. `length`: (U, 2) characters of each side. `repeats`: further votes of one
    annotator on one unit, of which the latest counts; `changed` of them said something else before.
    """

    pairs: Sequence[PreferencePair]  # U, one record of each unit
    sides: Sequence[tuple[str, str]]  # U, its responses
    ids: Sequence[frozenset[str]]  # U, the ids of all its records
    annotators: Sequence[str]
    unit: I64
    side: I64
    annotator: I64
    shown: I64
    time: F64
    repeats: int
    changed: int

    @property
    def length(self) -> I64:
        """Characters of both sides, (U, 2)."""
        return np.array([[len(first), len(second)] for first, second in self.sides], dtype=np.int64).reshape(-1, 2)

    def counts(self) -> I64:
        """Votes for side 0, side 1 and a tie of each unit: (U, 3)."""
        table = np.zeros((len(self.pairs), 3), dtype=np.int64)
        np.add.at(table, (self.unit, self.side), 1)
        return table

    def digest(self, unit: int) -> str:
        """A name of a unit that follows from its texts alone, whatever was preferred: 16 hex digits."""
        texts = [self.pairs[unit].prompt_text(), *sorted(self.sides[unit])]
        return blake2b("\x00".join(texts).encode(), digest_size=8).hexdigest()


def group_votes(votes: Sequence[Vote], matching: MatchingParams) -> Units:
    """The units of votes. The same texts as curation sees them are one unit; the order of the votes is kept."""
    found = contents([Item.of(vote.pair, place) for place, vote in enumerate(votes)], matching)
    places: dict[Hashable, int] = {}
    pairs: list[PreferencePair] = []
    sides: list[tuple[str, str]] = []
    swapped: list[bool] = []
    unit = []
    for vote, content in zip(votes, found, strict=True):
        turned = _turned(content)
        place = places.setdefault((content.request(), frozenset(content.said())), len(pairs))
        if place == len(pairs):
            pairs.append(vote.pair)
            two = (vote.pair.chosen, vote.pair.rejected)
            sides.append(two[::-1] if turned else two)
        unit.append(place)
        swapped.append(turned)
    return _columns(votes, unit, swapped, pairs, sides)


def _turned(content: PairContent) -> bool:
    """True if `chosen` is side 1."""
    first, second = (blake2b(text.encode(), digest_size=8).digest() for text in content.said())
    return first > second


def _columns(
    votes: Sequence[Vote],
    unit: list[int],
    swapped: list[bool],
    pairs: list[PreferencePair],
    sides: list[tuple[str, str]],
) -> Units:
    names = sorted({vote.annotator for vote in votes if vote.annotator is not None})
    number = {name: place for place, name in enumerate(names)}
    ids: list[set[str]] = [set() for _ in pairs]
    for vote, place in zip(votes, unit, strict=True):
        ids[place].add(vote.pair.id)
    side = [_side(vote, turned) for vote, turned in zip(votes, swapped, strict=True)]
    kept, changed = _latest(votes, unit, side)
    return Units(
        pairs=pairs,
        sides=sides,
        ids=[frozenset(each) for each in ids],
        annotators=names,
        unit=np.array([unit[n] for n in kept], dtype=np.int64),
        side=np.array([side[n] for n in kept], dtype=np.int64),
        annotator=np.array([number.get(votes[n].annotator or "", -1) for n in kept], dtype=np.int64),
        shown=np.array([_shown(votes[n], swapped[n]) for n in kept], dtype=np.int64),
        time=np.array([_seconds(votes[n]) for n in kept], dtype=np.float64),
        repeats=len(votes) - len(kept),
        changed=changed,
    )


def _side(vote: Vote, turned: bool) -> int:
    return TIE if vote.label == "tie" else int((vote.label == "rejected") != turned)


def _shown(vote: Vote, turned: bool) -> int:
    return -1 if vote.chosen_first is None else int((not vote.chosen_first) != turned)


def _seconds(vote: Vote) -> float:
    """Seconds since 1970; NaN for a vote without a readable time."""
    time = parse_time(vote.pair.timestamp)
    return time.timestamp() if time.year > 1 else float("nan")


def _latest(votes: Sequence[Vote], unit: list[int], side: list[int]) -> tuple[list[int], int]:
    """Votes that count, the latest of each annotator on each unit, in order; and how often one said something else."""
    last: dict[Hashable, int] = {}
    changed = 0
    for place, vote in enumerate(votes):
        key: Hashable = place if vote.annotator is None else (vote.annotator, unit[place])
        before = last.get(key)
        if before is not None:
            changed += side[before] != side[place]
            if parse_time(vote.pair.timestamp) < parse_time(votes[before].pair.timestamp):
                continue
        last[key] = place
    return sorted(last.values()), changed
