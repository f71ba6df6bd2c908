"""Votes: what each annotator said of two responses, ties included, as the raw rows hold it.

A pair is what is left of a row for training. Its row says more: who voted for what, which response came first, and
which rows are ties, that hold no preference but do say something about agreement.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from plumbline.data_contracts.contract_suite import KnownIds
from plumbline.data_contracts.records import Feedback, Origin, PreferencePair, Quarantined
from plumbline.tasks.data.feedback import UNPAIRED
from plumbline.tasks.data.feedback.defects import Defect
from plumbline.tasks.data.feedback.formats import READER
from plumbline.tasks.data.feedback.human_pairs import pair_of
from plumbline.tasks.data.feedback.pair_contents import tied_content
from plumbline.tasks.data.feedback.readings import columns_of
from plumbline.tasks.data.feedback.rows import ReadRow, parsed
from plumbline.tasks.data.feedback.validate import NamedBatch, checked_rows
from plumbline.tasks.data.feedback.verdicts import Side, votes_in
from plumbline.tasks.data.feedback.withdrawals import NONE, Withdrawals
from plumbline.tasks.params.feedback import FeedbackParams

Label = Literal["chosen", "rejected", "tie"]
"""The response that a vote prefers: that in the record's `chosen`, that in `rejected`, or neither."""

_COUNTS = "vote_counts"


@dataclass(frozen=True, slots=True)
class Vote:
    """One vote on two responses.

    `pair` is the record of the row; for a row that is a tie `chosen` is merely its first response. `annotator` is None
    for a vote that nobody signed. `chosen_first`: whether the row shows `chosen` before `rejected`, None if unknown.
    """

    pair: PreferencePair
    label: Label
    annotator: str | None
    chosen_first: bool | None


@dataclass(slots=True)
class VotesRead:
    """Every vote, the accepted pairs, and the account: rows read = accepted + ties + set_aside."""

    votes: list[Vote] = field(default_factory=list)
    pairs: list[PreferencePair] = field(default_factory=list)
    read: int = 0
    ties: int = 0

    @property
    def set_aside(self) -> int:
        """Rows that are neither a valid pair nor a tie."""
        return self.read - len(self.pairs) - self.ties


def read_votes(batches: Sequence[NamedBatch], params: FeedbackParams, withdrawn: Withdrawals = NONE) -> VotesRead:
    """Read the votes of all batches of pairs, in order; what was withdrawn is left out.

    Raises `UsageError` for a file that cannot be read.
    """
    found, known = VotesRead(), KnownIds()
    for source, origin, path in batches:
        if source in UNPAIRED:
            continue
        for row, outcome in checked_rows((source, origin, path), params, known, withdrawn):
            found.read += 1
            pair = _pair(row, outcome, source, path, params)
            if pair is None:
                continue
            tie = isinstance(outcome, Quarantined)
            if tie:
                found.ties += 1
            else:
                found.pairs.append(pair)
            listed = pair.metadata.get("votes") or _numbers(row, path, params)
            votes = _votes(pair, "tie" if tie else row.label, listed)
            found.votes += [vote for vote in votes if not _withdrawn(vote, withdrawn)]
    return found


def _pair(
    row: ReadRow, outcome: Feedback | Quarantined, source: str, path: Path, params: FeedbackParams
) -> PreferencePair | None:
    if isinstance(outcome, PreferencePair):
        return outcome
    if not isinstance(outcome, Quarantined) or outcome.reason != "tie" or READER[row.format].kind != "pair":
        return None
    origin = Origin(file=outcome.file, line=row.line, senders=outcome.senders)
    try:
        pair = pair_of(tied_content(READER[row.format], _parsed(row, path, params)), origin, source)
    except Defect:
        return None
    return pair if pair.chosen.split() != pair.rejected.split() else None


def _parsed(row: ReadRow, path: Path, params: FeedbackParams) -> dict[str, Any]:
    """The columns of a row that was read, under the names of its map."""
    (found,) = parsed([(row.line, row.raw.encode())], columns_of(path), params.limits().of_stored())
    return found


def _numbers(row: ReadRow, path: Path, params: FeedbackParams) -> dict[str, Any] | None:
    """The numbers of votes of a row that has a column for each of a, b and tie; None for other rows."""
    if row.format != _COUNTS:
        return None
    columns = _parsed(row, path, params)
    return {side: columns[f"votes_{side}"] for side in ("a", "b", "tie") if f"votes_{side}" in columns}


def _votes(pair: PreferencePair, label: str | None, listed: object) -> Iterator[Vote]:
    """The votes that a row lists; else one, of its annotator. `label` is the row's own, a, b or tie."""
    known = label in ("a", "b", "tie")
    chosen_first = label != "b" if known else None
    several = votes_in(listed, {}) if known else []
    for annotator, side in several:
        yield Vote(pair, _label(side, chosen_first is not False), annotator, chosen_first)
    if not several:
        yield Vote(pair, "tie" if label == "tie" else "chosen", pair.annotator, chosen_first)


def _label(side: Side, chosen_first: bool) -> Label:
    if side == "tie":
        return "tie"
    return "chosen" if (side == "a") == chosen_first else "rejected"


def _withdrawn(vote: Vote, withdrawn: Withdrawals) -> bool:
    return vote.annotator is not None and withdrawn.find("annotator", vote.annotator) is not None
