"""Pairs of judged responses: rows of one prompt, each with a rating or a thumb, are compared as a list.

A pair keeps both ratings as scores, the lines that it was made of, and everybody who rated if there were several.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from plumbline.data_contracts.records import Message, Origin
from plumbline.tasks.data.feedback.defects import Defect
from plumbline.tasks.data.feedback.groups import RatedRow, places_of
from plumbline.tasks.data.feedback.lists import ListedResponse, comparisons, tie
from plumbline.tasks.data.feedback.opinions import texts_of, worth_of
from plumbline.tasks.data.feedback.readers import Reader, RowContent
from plumbline.tasks.data.feedback.rows import identifier
from plumbline.tasks.params.feedback_rules import ListPairs, Rules

_ALONE = (
    "another response to the same prompt that feedback.list_pairs compares it with (for single responses: source "
    "unpaired_responses)"
)


def judged_row(
    reader: Reader, row: Mapping[str, Any], origin: Origin, rules: Rules
) -> tuple[tuple[Message, ...], RatedRow]:
    """The prompt of a judged response, and the row to be compared. Raises `Defect` if it cannot be."""
    flat = reader.flat(row)
    worth, _ = worth_of(reader, flat, rules)
    prompt, response = texts_of(reader, flat)
    if not any(turn.content.strip() for turn in prompt):
        raise Defect("empty_text", reader.prompt, "a prompt with a visible character", '""')
    return prompt, RatedRow(origin.line, response, worth, orjson.dumps(dict(row)), origin.senders)


def group_contents(
    reader: Reader, rows: Sequence[RatedRow], rule: ListPairs
) -> Iterator[tuple[RatedRow, RowContent | Defect]]:
    """The comparisons of the rows of one prompt, each with the row of its better response.

    A row whose response is compared with no other comes with its defect.
    """
    prompt, _ = texts_of(reader, reader.flat(orjson.loads(rows[0].raw)))
    places = places_of(rows)
    compared = comparisons(places, rule) if len(places) > 1 else []
    used: set[str] = set()
    for better, worse in compared:
        used.update((better.text, worse.text))
        row = rows[better.number - 1]
        if better.worth == worse.worth:
            yield row, tie(reader.rating or reader.opinion or "", better, worse)
        else:
            yield row, _content(reader, prompt, rows, better, worse, len(compared))
    for row in rows:
        if row.response not in used:
            yield row, Defect("no_pair", reader.response, _ALONE, f"{len(places)} responses")


def _content(
    reader: Reader,
    prompt: tuple[Message, ...],
    rows: Sequence[RatedRow],
    better: ListedResponse,
    worse: ListedResponse,
    pairs: int,
) -> RowContent:
    """The comparison of two responses, each of one row or of several with the same text."""
    texts = (better.text, worse.text)
    made_of = [row for row in rows if row.response in texts]
    first, second = (orjson.loads(rows[place.number - 1].raw) for place in (better, worse))
    facts = reader.kept(reader.flat(first)) | {"lines": sorted(row.line for row in made_of)}
    facts |= {"score_chosen": better.worth, "score_rejected": worse.worth, "list_pairs": pairs}
    people = sorted({name for row in made_of if (name := identifier(orjson.loads(row.raw), "annotator")) is not None})
    facts |= {"annotators": people} if len(people) > 1 else {}
    ids = [identifier(row, "id") for row in (first, second)]
    row = {name: value for name, value in first.items() if name not in ("id", "annotator")}
    row |= {"id": "-".join(map(str, ids))} if None not in ids else {}
    row |= {"annotator": people[0]} if len(people) == 1 else {}
    return RowContent(prompt, better.text, worse.text, facts, row)
