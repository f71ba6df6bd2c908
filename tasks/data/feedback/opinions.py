"""Single responses: the prompt, the response and whether people liked it, from a thumb, a label or a rating.

A label or thumb is true, 1, up or thumbs_up; or false, 0 (a label) or -1 (a thumb), down or thumbs_down. A thumb that
is absent, null, 0, none or neutral is no opinion. A rating counts as up in the upper quarter of its scale, as down in
the lower one (of 1 to 5: 4 and 5, 1 and 2), and is no opinion between them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from plumbline.data_contracts.contract_suite import excerpt
from plumbline.data_contracts.records import Message
from plumbline.tasks.data.feedback.columns import (
    Row,
    is_hh,
    is_message,
    messages_of,
    number_of,
    single_response,
    text_of,
)
from plumbline.tasks.data.feedback.defects import Defect
from plumbline.tasks.data.feedback.hh_text import parse_response
from plumbline.tasks.data.feedback.opinion_words import is_neutral, read_opinion
from plumbline.tasks.data.feedback.pair_contents import prompt_turns
from plumbline.tasks.data.feedback.readers import Reader
from plumbline.tasks.params.feedback_rules import Rules

_SCALE = re.compile(r"rating_(-?\d+)_(-?\d+)")


@dataclass(frozen=True, slots=True)
class Single:
    """One judged response: `worth` is its rating, or 1 and 0 for yes and no."""

    prompt: tuple[Message, ...]
    response: str
    desirable: bool
    worth: float
    facts: Mapping[str, Any] = field(default_factory=dict)


def single(reader: Reader, row: Row, rules: Rules) -> Single:
    """The judged response of a row; raises `Defect` with the first thing wrong.

    The opinion is read before the texts: no opinion is none, whatever the texts hold.
    """
    row = reader.flat(row)
    worth, up = worth_of(reader, row, rules)
    if up is None:
        low, high = scale_of(reader, row, rules)
        expected = f"a rating in the upper or lower quarter of {low:g} to {high:g}"
        raise Defect("no_opinion", reader.rating, expected, f"{worth:g}")
    facts = reader.kept(row) | ({reader.rating: row[reader.rating]} if reader.rating else {})
    prompt, response = texts_of(reader, row)
    return Single(prompt, response, up, worth, facts)


def texts_of(reader: Reader, row: Row) -> tuple[tuple[Message, ...], str]:
    """The prompt and the response of a flat row."""
    field = reader.response or ""
    if reader.prompt is None:
        turns = messages_of(row, field)
        if not turns or turns[-1].role != "assistant":
            found = f"a last message by {turns[-1].role}" if turns else "no message"
            raise Defect(
                "turn_order" if turns else "empty_text", field, "messages that end with the assistant's", found
            )
        return turns[:-1], turns[-1].content
    value = row[field]
    response = single_response(row, field) if isinstance(value, list) or is_message(value) else text_of(row, field)
    if isinstance(row[reader.prompt], str) and is_hh(row, reader.prompt):
        response = parse_response(response, field, row[reader.prompt])
    return prompt_turns(reader, row), response


def worth_of(reader: Reader, row: Row, rules: Rules) -> tuple[float, bool | None]:
    """The rating of a flat row (1 and 0 for yes and no), and whether that is up, down or neither.

    Raises `Defect` if it is off its scale.
    """
    if reader.rating is None:
        up = _opinion(row, reader.opinion or "")
        return float(up), up
    column = reader.rating
    value = row[column]
    if isinstance(value, bool) or (isinstance(value, str) and number_of(value) is None):
        up = _opinion(row, column)
        return float(up), up
    rating = number_of(value)
    if rating is None:
        raise Defect("wrong_type", column, "a number", excerpt(value))
    low, high = scale_of(reader, row, rules)
    if not low <= rating <= high:
        expected = f"a rating from {low:g} to {high:g} (another scale: feedback.rating_scale)"
        raise Defect("bad_label", column, expected, excerpt(value))
    quarter = (high - low) / 4
    return rating, True if rating >= high - quarter else False if rating <= low + quarter else None


def scale_of(reader: Reader, row: Row, rules: Rules) -> tuple[float, float]:
    """The lowest and the highest rating: of the format, of the row itself (`rating_1_5`), or of params."""
    told = _SCALE.fullmatch(row["signal"]) if isinstance(row.get("signal"), str) else None
    if told is not None and int(told[1]) < int(told[2]):
        return float(told[1]), float(told[2])
    return reader.scale or rules.scale


def _opinion(row: Row, column: str) -> bool:
    value = row.get(column)
    found = read_opinion(value, column)
    if found is not None:
        return found
    if column == "thumb" and (value is None or is_neutral(value)):
        raise Defect("no_opinion", column, "up or down", excerpt(value))
    reason = "bad_label" if isinstance(value, (str, int, float)) else "wrong_type"
    raise Defect(reason, column, "true, false, up or down", excerpt(value))
