"""Lists: several responses to one prompt with their places become pairs, by the rule that params choose.

| rule             | pairs of a list of K responses                                                      |
|------------------|-------------------------------------------------------------------------------------|
| `best_vs_rest`   | the best with each other one: K - 1 (the default)                                   |
| `adjacent`       | each with the next one: K - 1                                                       |
| `all`            | each with each: K (K - 1) / 2                                                       |
| `best_vs_random` | the best with one other, which the digest of the list draws: 1                      |

Two responses in one place are a tie: it is counted, and no pair. A pair keeps the number of pairs of its list
(`list_pairs`) in its metadata; nothing weighs by it yet. The contract has no weight.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from typing import Any

from plumbline.data_contracts.contract_suite import excerpt
from plumbline.tasks.data.feedback.columns import (
    Row,
    field_names,
    is_hh,
    is_message,
    number_of,
    single_response,
    text_of,
    type_of,
    value_at,
)
from plumbline.tasks.data.feedback.defects import Defect
from plumbline.tasks.data.feedback.hh_text import parse_response
from plumbline.tasks.data.feedback.pair_contents import prompt_turns
from plumbline.tasks.data.feedback.readers import ListOf, Reader, RowContent
from plumbline.tasks.params.feedback_rules import ListPairs

MOST = 64
"""Most responses in a list: all pairs of it are 2,016."""

_ABOUT = ("model", "system", "annotator", "source", "id")  # what a response of a list says of itself


@dataclass(frozen=True, slots=True)
class ListedResponse:
    """A response of a list: its number in it (1 is the first) and its worth; the better one has the higher."""

    number: int
    text: str
    worth: float
    about: Mapping[str, Any] = field(default_factory=dict)


def list_contents(reader: Reader, row: Row, rule: ListPairs) -> Iterator[RowContent | Defect]:
    """The comparisons of a row with a list, ties as their defects; raises `Defect` if it is not sound as a whole."""
    assert reader.responses is not None, f"{reader.name} has no list"
    row = reader.flat(row)
    prompt, places = prompt_turns(reader, row), _places(reader, reader.responses, row)
    kept, found = reader.kept(row), comparisons(places, rule)
    for better, worse in found:
        if better.worth == worse.worth:
            yield tie(reader.responses.column, better, worse)
            continue
        facts = {"margin": better.worth - worse.worth, "list_pairs": len(found), **kept}
        sides = (("chosen", better), ("rejected", worse))
        facts |= {f"{side}_{name}": value for side, place in sides for name, value in place.about.items()}
        yield RowContent(prompt, better.text, worse.text, facts, row, f"{better.number}-{worse.number}")


def tie(field: str, better: ListedResponse, worse: ListedResponse) -> Defect:
    """The defect of two responses of a list of which neither is better."""
    found = f"responses {better.number} and {worse.number} in one place"
    return Defect("tie", field, "a response that is better than the other", found)


def comparisons(places: Sequence[ListedResponse], rule: ListPairs) -> list[tuple[ListedResponse, ListedResponse]]:
    """The responses that a rule compares, the better one first; of equal worth the first of the list comes first."""
    ordered = sorted(places, key=lambda place: (-place.worth, place.number))
    if rule == "all":
        return list(combinations(ordered, 2))
    if rule == "adjacent":
        return list(pairwise(ordered))
    best, *rest = ordered
    if rule == "best_vs_rest":
        return [(best, other) for other in rest]
    texts = "\0".join(place.text for place in places).encode("utf-8", "surrogatepass")
    return [(best, rest[int.from_bytes(hashlib.sha256(texts).digest()[:8]) % len(rest)])]


def _places(reader: Reader, listed: ListOf, row: Row) -> list[ListedResponse]:
    column = listed.column
    items = value_at(row, column)
    if not isinstance(items, list):
        raise Defect("wrong_type", column, "a list of responses", type_of(items))
    if len(items) > MOST:
        raise Defect("too_long", column, f"at most {MOST} responses in a list", f"{len(items)}")
    places = [_place(reader, listed, row, item, number) for number, item in enumerate(items, 1)]
    if len(places) < 2:
        raise Defect("no_pair", column, "two responses or more", f"{len(places)}")
    return places


def _place(reader: Reader, listed: ListOf, row: Row, item: object, number: int) -> ListedResponse:
    where = f"{listed.column}[{number - 1}]"
    if not isinstance(item, dict):
        expected = f"an object with a text ({', '.join(listed.texts[:3])}, …) and a rank or score"
        raise Defect("wrong_type", where, expected, type_of(item))
    name = next((name for name in listed.texts if item.get(name) is not None), None)
    if name is None:
        raise Defect(
            "missing_field", f"{where}.{listed.texts[0]}", f"one of {', '.join(listed.texts)}", field_names(item)
        )
    text = (
        single_response(item, name) if isinstance(item[name], list) or is_message(item[name]) else text_of(item, name)
    )
    column = reader.prompt or ""
    if is_hh(row, column):
        text = parse_response(text, f"{where}.{name}", text_of(row, column))
    about = {key: item[key] for key in _ABOUT if isinstance(item.get(key), (str, int))}
    return ListedResponse(number, text, _worth(listed, item, where), about)


def _worth(listed: ListOf, item: Mapping[str, Any], where: str) -> float:
    for names, sign in ((listed.ranks, -1), (listed.scores, 1)):
        name = next((name for name in names if item.get(name) is not None), None)
        if name is None:
            continue
        worth = number_of(item[name])
        if worth is None:
            raise Defect("bad_label", f"{where}.{name}", "a number", excerpt(item[name]))
        return sign * worth
    names_ = ", ".join((*listed.ranks, *listed.scores))
    raise Defect(
        "missing_field", f"{where}.{listed.scores[0]}", f"a rank (1 is best) or a score: {names_}", field_names(item)
    )
