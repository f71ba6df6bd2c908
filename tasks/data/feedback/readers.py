"""A reader: how the columns of a public shape of feedback become records. The table of all is in `reader_table`.

A reader names columns and what they are; this module knows how a prompt, a response or a list of responses is read out
of such a column. A column may be a text, a text in the HH format, one message, a list of messages, or a whole
conversation that repeats the prompt; `data.prompt` is a field inside a column.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from plumbline.data_contracts.preference_pair import excerpt
from plumbline.data_contracts.records import Message
from plumbline.tasks.data.feedback.columns import (
    EXTRAS,
    OPTIONAL,
    TOOLS,
    Row,
    field_names,
    number_of,
    refuse_tools,
    type_of,
    unknown_in_messages,
    value_at,
)
from plumbline.tasks.data.feedback.defects import Defect
from plumbline.tasks.data.feedback.verdicts import Verdict

Kind = Literal["pair", "list", "opinion", "rating"]
"""Two responses, a list of responses in an order, one response with a yes or no, one response with a number."""

DESCRIPTIVE = frozenset(
    {
        *("prompt_id", "conversation_id", "question_id", "row_id", "dataset", "data_source", "category"),
        *("domain", "language", "lang", "topic", "tags", "task", "subset", "split", "turn", "turns", "model"),
        *("models", "model_a", "model_b", "model_name", "chosen_model", "rejected_model", "chosen-model"),
        *("rejected-model", "chosen-rating", "rejected-rating", "chosen_score", "rejected_score"),
        *("chosen_rating", "rejected_rating", "prompt_source", "created_at", "updated_at", "tstamp", "judge"),
        *("notes", "comment", "comments", "explanation", "rationale", "reason", "annotators"),
    }
)
"""Columns that say something about a row and change nothing in what it says: they go into the record's metadata."""

_OF_THE_PROMPT = frozenset({"context", "history", "input", "passage", "document", "system", "instruction", "question"})
_INDEX = re.compile(r"__index_level_\d+__|Unnamed: \d+|")
_SHOWN = 8  # unknown fields shown with their values


@dataclass(frozen=True, slots=True)
class ListOf:
    """A column with the responses of a list.

    Each is a text, or an object with the text in one of `texts` and its place in one of `ranks` (1 is best) or `scores`
    (the highest is best). `beside`: a column with a rank (`-1`) or score (`1`) for each response, in their order.
    """

    column: str
    texts: tuple[str, ...] = ("answer", "response", "text", "completion", "content", "output", "generation")
    ranks: tuple[str, ...] = ("rank", "ranking", "place")
    scores: tuple[str, ...] = ("overall_score", "score", "rating", "reward", "value")
    beside: tuple[str, Literal[-1, 1]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """The columns of one shape and their meaning.

    `prompt`: the prompt; None: what both responses share at their start. `system` and `context` may be absent: a system
    turn, and a text that is appended to the prompt. `sides`: two responses, the better one first unless `verdict` says
    which it is; `scores`: theirs. `responses`: a list of responses. `response` with `opinion` (a yes or no) or with
    `rating` on a `scale`: one response.

    `keeps` go into the metadata and `drops` nowhere. Other columns refuse the row, or go into the metadata too
    (`keeps_all`), but for those that may be of the prompt. `when`: what else must hold of a row's values. `flatten`
    gives the row's columns plainly, for a shape that is found by other columns (`found_by`) than it is read from.
    """

    name: str
    title: str
    kind: Kind = "pair"
    prompt: str | None = None
    system: str | None = None
    context: str | None = None
    history: str | None = None
    sides: tuple[str, str] | None = None
    verdict: Verdict | None = None
    scores: tuple[str, str] | None = None
    responses: ListOf | None = None
    response: str | None = None
    opinion: str | None = None
    rating: str | None = None
    scale: tuple[float, float] | None = None
    keeps: tuple[str, ...] = ()
    drops: tuple[str, ...] = ()
    keeps_all: bool = False
    when: Callable[[Row], bool] | None = None
    flatten: Callable[[Row], Row] | None = None
    found_by: tuple[str, ...] = ()
    needs: tuple[str, ...] = field(init=False)
    """Columns without which a row is not of this shape."""
    knows: frozenset[str] = field(init=False)
    """Top-level columns that it reads."""

    def __post_init__(self) -> None:
        beside = self.responses.beside[:1] if self.responses and self.responses.beside else ()
        named = (
            self.prompt,
            *(self.sides or ()),
            *(self.verdict.columns if self.verdict else ()),
            self.responses.column if self.responses else None,
            *beside,
            self.response,
            None if self.opinion == "thumb" else self.opinion,  # a thumb that is absent is no opinion
            self.rating,
        )
        needs = tuple(name for name in named if name)
        optional = (self.system, self.context, self.history, self.opinion, *(self.scores or ()), *self.drops)
        object.__setattr__(self, "needs", self.found_by if self.flatten else needs)
        object.__setattr__(self, "knows", frozenset(name.split(".")[0] for name in (*needs, *optional) if name))

    def has(self, row: Row) -> int:
        """The number of needed columns that a row has."""
        return sum(value_at(row, name) is not None for name in self.needs)

    def fits(self, row: Row) -> bool:
        """True if a row has every needed column, and what else must hold of it does."""
        return self.has(row) == len(self.needs) and (self.when is None or self.when(row))

    def flat(self, row: Row) -> Row:
        """The row with plain columns, once it is known to have what it needs and nothing that is not understood.

        Raises `Defect` for a column that is missing, unknown, or offers tools.
        """
        for name in self.needs:
            if value_at(row, name) is None:
                raise Defect("missing_field", name, f"{', '.join(self.needs)} (format {self.name})", field_names(row))
        refuse_tools(row)
        inside = row.get(self.prompt.split(".")[0]) if self.prompt else None
        if isinstance(inside, Mapping):
            refuse_tools(inside)
        row = self.flatten(row) if self.flatten else row
        self._refuse_unknown(row)
        return row

    def kept(self, row: Row) -> dict[str, Any]:
        """The columns of a flat row that go into the record's metadata by their own names."""
        own = self.knows | OPTIONAL | EXTRAS | frozenset(TOOLS)
        names = [name for name in row if name not in own and not is_index(name)]
        found = {name: row[name] for name in names if self.keeps_all or name in DESCRIPTIVE or name in self.keeps}
        if self.keeps_all:  # some sets have a list of sources or annotators where the contract has one
            found |= {name: row[name] for name in ("source", "annotator") if isinstance(row.get(name), (list, dict))}
        return found

    def _refuse_unknown(self, row: Row) -> None:
        known = self.knows | OPTIONAL | EXTRAS | DESCRIPTIVE | frozenset((*self.keeps, *TOOLS))
        unknown = sorted(name for name in row if name not in known and not is_index(name))
        if self.keeps_all:  # what a model would have to see is not put aside unasked
            unknown = [name for name in unknown if name in _OF_THE_PROMPT and isinstance(row[name], str) and row[name]]
        if unknown:
            needed = ", ".join(self.needs)
            expected = f"the fields of format {self.name} ({needed}), and others inside metadata"
            cure = f" (to keep it there: --map metadata={','.join(unknown[:_SHOWN])})"
            found = "; ".join(f"{name}: {excerpt(row[name])}" for name in unknown[:_SHOWN])
            raise Defect("unknown_field", unknown[0], expected + cure, found, (*unknown, *unknown_in_messages(row)))


@dataclass(frozen=True, slots=True)
class RowContent:
    """One comparison: the prompt, the response people preferred, the one they did not, and facts for the metadata.

    `row` is the row with plain columns; `part` tells the comparisons of one list apart.
    """

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    row: Row = field(default_factory=dict, compare=False)
    part: str = ""


def is_index(name: str) -> bool:
    """True for a column that is merely the row number of a data frame."""
    return _INDEX.fullmatch(name) is not None


def scores_of(row: Row, columns: Sequence[str], *, swapped: bool) -> dict[str, Any]:
    """The scores of chosen and rejected, if both are numbers."""
    found = [value_at(row, name) for name in (reversed(columns) if swapped else columns)]
    if any(number_of(score) is None for score in found):
        return {}
    return {"score_chosen": found[0], "score_rejected": found[1]}


def wrong(field: str, expected: str, row: Row) -> Defect:
    """The defect of a column of another type."""
    return Defect("wrong_type", field, expected, type_of(value_at(row, field)))
