"""Verdicts on two responses: the label of a row, in whatever way a tool writes it, becomes a, b or tie.

Words say which side they mean (`A`, `model_b`, `response_1`, `left`, `tie (bothbad)`). A number may mean two things: 0
and 1 name the sides of one tool, and say "no" and "yes" in another. It is read where the format says what it means,
where the file has 1 and 2 and no other, or where a map says it (`--map label.a=0 --map label.b=1`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from plumbline.data_contracts.preference_pair import excerpt
from plumbline.tasks.data.feedback.columns import Row, number_of, type_of, value_at
from plumbline.tasks.data.feedback.defects import Defect

Side = Literal["a", "b", "tie"]
"""The first response of a row, the second, or neither."""

Numbers = Mapping[float, Side]
"""The side that each number means."""

ONE_TWO: Numbers = {1: "a", 2: "b"}

_SIDES: Mapping[str, Side] = {"a": "a", "b": "b", "left": "a", "right": "b", "first": "a", "second": "b"}
_TIES = frozenset(
    {
        *("tie", "tie_bothbad", "tie_both_bad", "bothbad", "both_bad", "both_good", "both", "neither", "equal"),
        *("draw", "same", "no_preference"),
    }
)
_PREFIX = re.compile(r"(?:the_)?(?:model|response|answer|output|assistant|option|candidate|completion|side)_?")
_WORD_CUT = re.compile(r"[\s\-()]+")
EXPECTED = "a, b or tie"
HOW_TO_MAP = (
    "a, b or tie: a number or a yes can mean either side. Say which by a map, as --map label.a=0 --map label.b=1"
)


@dataclass(frozen=True, slots=True)
class Word:
    """A column with a word for a side. `numbers`: what numbers mean in it, if the format says that."""

    column: str
    numbers: Numbers = field(default_factory=dict)

    def side(self, row: Row, numbers: Numbers) -> Side:
        """The side of a row; `numbers` is what numbers mean in its file. Raises `Defect`."""
        value = value_at(row, self.column)
        if isinstance(value, list) and len(value) > 1:  # the labels of several people
            return _most(_voted(value, self.column, self.numbers or numbers))
        found = read_side(value, self.numbers or numbers)
        if found is None:
            raise _unknown(value, self.column)
        return found

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it reads."""
        return (self.column,)


@dataclass(frozen=True, slots=True)
class OneHot:
    """Three columns of which one is 1 (or true), for a, for b and for a tie."""

    a: str
    b: str
    tie: str

    def side(self, row: Row, numbers: Numbers) -> Side:
        """The side whose column is set. Raises `Defect` unless exactly one is."""
        names: Mapping[str, Side] = {self.a: "a", self.b: "b", self.tie: "tie"}
        set_ = [side for column, side in names.items() if _is_set(row.get(column))]
        if len(set_) != 1:
            found = "; ".join(f"{column}: {excerpt(row.get(column))}" for column in names)
            raise Defect("bad_label", self.a, f"1 in one of {', '.join(names)}, and 0 in the others", found)
        return set_[0]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it needs; that for a tie may be absent."""
        return (self.a, self.b)


@dataclass(frozen=True, slots=True)
class Signed:
    """A column with a number below 0 for a, above for b, and 0 for a tie; its size is the margin."""

    column: str

    def side(self, row: Row, numbers: Numbers) -> Side:
        """The side by the number's sign. Raises `Defect`."""
        found = number_of(value_at(row, self.column))
        if found is None:
            raise Defect(
                "bad_label", self.column, "a number: below 0 for the first response", excerpt(row[self.column])
            )
        return "tie" if found == 0 else "a" if found < 0 else "b"

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it reads."""
        return (self.column,)


@dataclass(frozen=True, slots=True)
class Higher:
    """Two columns with scores, of which the higher wins."""

    a: str
    b: str

    def side(self, row: Row, numbers: Numbers) -> Side:
        """The side with the higher score. Raises `Defect`."""
        scores = []
        for column in (self.a, self.b):
            score = number_of(value_at(row, column))
            if score is None:
                raise Defect("wrong_type", column, "a number, the score of a response", type_of(value_at(row, column)))
            scores.append(score)
        return "tie" if scores[0] == scores[1] else "a" if scores[0] > scores[1] else "b"

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it reads."""
        return (self.a, self.b)


@dataclass(frozen=True, slots=True)
class Majority:
    """A column with several votes: a list of labels or of objects with one, or an object of counts."""

    column: str

    def side(self, row: Row, numbers: Numbers) -> Side:
        """The side with most votes, a tie if a and b have as many. Raises `Defect`."""
        votes = row[self.column]
        return _most(_counted(votes, self.column) if isinstance(votes, dict) else _voted(votes, self.column, numbers))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it reads."""
        return (self.column,)


Verdict = Word | OneHot | Signed | Higher | Majority
"""A way in which a row says which response is better."""


def read_side(value: object, numbers: Numbers) -> Side | None:
    """The side that a label means; None if it means none, or a number may mean either."""
    if isinstance(value, bool):
        return None
    if (number := number_of(value)) is not None:
        return numbers.get(number)
    if not isinstance(value, str):
        return None
    word = _WORD_CUT.sub("_", value.strip().lower()).strip("_")
    if word in _TIES:
        return "tie"
    bare = word[match.end() :] if (match := _PREFIX.match(word)) else word
    return _SIDES.get(bare) or (numbers.get(float(bare)) if bare.isdecimal() and len(bare) < 3 else None)


def votes_in(votes: object, numbers: Numbers) -> list[tuple[str | None, Side]]:
    """Each vote of a column with several, and who gave it (None if it does not say): a list, or an object of counts.

    No votes at all for a column that cannot be read whole.
    """
    try:
        if isinstance(votes, dict):
            return [(None, side) for side, count in _counted(votes, "votes").items() for _ in range(count)]
        _voted(votes, "votes", numbers)
    except Defect:
        return []
    assert isinstance(votes, list)
    found = [(_voter_of(vote), read_side(_label_of(vote), numbers)) for vote in votes]
    return [(voter, side) for voter, side in found if side is not None]


def numbers_of(labels: Iterable[object]) -> Numbers:
    """The meaning of the numbers in a file's labels: 1 and 2 are a and b if both occur and no other does; else none."""
    found = {_digit(label) for label in labels} - {None}
    return ONE_TWO if found == {1.0, 2.0} else {}


def _digit(label: object) -> float | None:
    if isinstance(label, str) and (match := _PREFIX.match(label.strip().lower())):
        label = label.strip()[match.end() :]
    return number_of(label)


def _unknown(value: object, column: str) -> Defect:
    if isinstance(value, (bool, int, float)) or (isinstance(value, str) and number_of(value) is not None):
        reason = "bad_label" if isinstance(value, str) else "wrong_type"
        return Defect(reason, column, HOW_TO_MAP, type_of(value))
    if not isinstance(value, str):
        return Defect("wrong_type", column, f"a string: {EXPECTED}", type_of(value))
    digit = _digit(value) is not None or value.strip().lower() in ("true", "false", "yes", "no")
    return Defect("bad_label", column, HOW_TO_MAP if digit else EXPECTED, excerpt(value))


def _is_set(value: object) -> bool:
    return number_of(value) == 1 or value is True or (isinstance(value, str) and value.strip().lower() == "true")


def _voted(votes: Any, column: str, numbers: Numbers) -> Counter[Side]:
    if not isinstance(votes, list) or not votes:
        raise Defect("wrong_type", column, "a list of votes", type_of(votes))
    counts: Counter[Side] = Counter()
    for place, vote in enumerate(votes):
        label = _label_of(vote)
        side = read_side(label, numbers)
        if side is None:
            raise _unknown(label, f"{column}[{place}]")
        counts[side] += 1
    return counts


def _most(counts: Counter[Side]) -> Side:
    if counts["a"] == counts["b"] or counts["tie"] > max(counts["a"], counts["b"]):
        return "tie"
    return "a" if counts["a"] > counts["b"] else "b"


def _label_of(vote: object) -> object:
    if not isinstance(vote, dict):
        return vote
    return next((vote[name] for name in ("label", "vote", "winner", "preference", "choice") if name in vote), None)


def _voter_of(vote: object) -> str | None:
    if not isinstance(vote, dict):
        return None
    named = next((vote[name] for name in ("annotator", "worker", "user", "rater") if name in vote), None)
    return str(named) if isinstance(named, (str, int)) and not isinstance(named, bool) else None


def _counted(votes: Mapping[str, Any], column: str) -> Counter[Side]:
    counts: Counter[Side] = Counter()
    for name, value in votes.items():
        side, number = read_side(name, ONE_TWO), number_of(value)
        if side is None or number is None or number < 0:
            raise Defect("bad_label", column, "a count for each of a, b and tie", f"{name}: {excerpt(value)}")
        counts[side] += int(number)
    return counts
