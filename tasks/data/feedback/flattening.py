"""Rows of shapes whose columns are nested, packed into texts or named in many ways, with plain columns instead.

Each function gives a row with `prompt` and responses under the names that the readers of the table know; what it does
not understand stays as it is. It raises `Defect` where a row lacks what its shape needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from plumbline.data_contracts.contract_suite import excerpt
from plumbline.tasks.data.feedback.columns import Row, field_names, number_of, type_of
from plumbline.tasks.data.feedback.defects import Defect
from plumbline.tasks.data.feedback.opinion_words import read_opinion
from plumbline.tasks.data.feedback.verdicts import read_side

PROMPTS = ("prompt", "question", "instruction", "query", "input", "user_prompt", "context")
"""Names that a prompt has, the first that a row has."""

BETTER_WORSE = (
    ("chosen", "rejected"),
    ("preferred", "rejected"),
    ("preferred", "dispreferred"),
    ("preferred", "non_preferred"),
    ("accepted", "rejected"),
    ("better", "worse"),
    ("good", "bad"),
    ("winner", "loser"),
    ("chosen_response", "rejected_response"),
    ("response_chosen", "response_rejected"),
    ("preferred_response", "rejected_response"),
    ("preferred_response", "dispreferred_response"),
    ("better_response", "worse_response"),
)
"""Names that the better and the worse response have."""

VERDICTS = ("label", "labels", "winner", "preference", "preferred", "choice", "better", "vote", "verdict")
"""Names that a column has which says the better side."""

LISTS = ("responses", "answers", "completions", "candidates", "generations", "outputs")
"""Names that a column with a list of responses has."""

RESPONSES = ("response", "answer", "completion", "output", "reply", "generation")
"""Names that a single response has."""

RATINGS = ("rating", "score", "stars", "overall_rating", "quality", "grade")
"""Names that a rating has."""

OPINIONS = ("thumb", "thumbs", "feedback", "liked", "vote", "helpful", "kto_tag", "label")
"""Names that a yes or no has."""

_STEMS = ("response", "answer", "output", "completion", "candidate", "option", "reply", "summary", "generation", "text")
_SUFFIXES = (("_a", "_b"), ("_A", "_B"), ("A", "B"), ("_1", "_2"), ("1", "2"), ("_0", "_1"), ("_left", "_right"))
_RANKS = ("ranking", "ranks", "rank")
_SCORES = ("scores", "ratings", "rewards", "overall_scores")


def named_pair(row: Row) -> Row:
    """A prompt, a better and a worse response under whatever names."""
    prompt, sides = _first(row, PROMPTS), _better_worse(row)
    assert prompt is not None and sides is not None, "only rows for which is_named_pair holds"
    return _renamed(row, {prompt: "prompt", sides[0]: "chosen", sides[1]: "rejected"})


def is_named_pair(row: Row) -> bool:
    """True if a row has a prompt, a better and a worse response under names that say so."""
    return _first(row, PROMPTS) is not None and _better_worse(row) is not None


def named_sides(row: Row) -> Row:
    """A prompt, two responses that are counted through, and a verdict, under whatever names.

    A verdict that is a number, or names a column, means the response counted so: 2 is `answer_2`.
    """
    prompt, sides, verdict = _first(row, PROMPTS), _sides(row), _first(row, VERDICTS)
    assert prompt and sides and verdict, "only rows for which is_named_sides holds"
    flat = _renamed(row, {prompt: "prompt", sides[0]: "response_a", sides[1]: "response_b", verdict: "label"})
    return {**flat, "label": _counted(row[verdict], sides)}


def is_named_sides(row: Row) -> bool:
    """True if a row has a prompt, two counted responses and a verdict."""
    return _first(row, PROMPTS) is not None and _sides(row) is not None and _first(row, VERDICTS) is not None


def named_list(row: Row) -> Row:
    """A prompt and a list of responses, with their places inside or in a list beside, under whatever names."""
    prompt, column = _first(row, PROMPTS), _first(row, LISTS)
    assert prompt and column, "only rows for which is_named_list holds"
    beside = _first(row, (*_RANKS, *_SCORES))
    flat = _renamed(row, {prompt: "prompt", column: "responses", **({beside: "places"} if beside else {})})
    if beside is None:
        return flat
    return {**flat, "responses": _placed(row, column, beside)}


def is_named_list(row: Row) -> bool:
    """True if a row has a prompt and a list of responses, texts with a list beside or objects."""
    column = _first(row, LISTS)
    if _first(row, PROMPTS) is None or column is None or not isinstance(row[column], list):
        return False
    return _first(row, (*_RANKS, *_SCORES)) is not None or any(isinstance(item, dict) for item in row[column])


def named_rating(row: Row) -> Row:
    """A prompt, a response and a rating under whatever names."""
    return _single(row, RATINGS, "rating")


def is_named_rating(row: Row) -> bool:
    """True if a row has a prompt, a response and a number under the name of a rating."""
    return _is_single(row, RATINGS) and number_of(row[_first(row, RATINGS) or ""]) is not None


def named_opinion(row: Row) -> Row:
    """A prompt, a response and a yes or no under whatever names."""
    return _single(row, OPINIONS, "thumb")


def is_named_opinion(row: Row) -> bool:
    """True if a row has a prompt, a response and a yes or no under the name of one."""
    name = _first(row, OPINIONS)
    return _is_single(row, OPINIONS) and name is not None and read_opinion(row[name], "thumb") is not None


def _is_single(row: Row, names: Sequence[str]) -> bool:
    return all(_first(row, each) is not None for each in (PROMPTS, RESPONSES, names))


def _single(row: Row, names: Sequence[str], kind: str) -> Row:
    prompt, response, judged = _first(row, PROMPTS), _first(row, RESPONSES), _first(row, names)
    assert prompt and response and judged, "only rows for which the condition of the reader holds"
    return _renamed(row, {prompt: "prompt", response: "response", judged: kind})


def battle(row: Row) -> Row:
    """The turns of a battle, given as lists of texts in JSON (one for each turn), as two conversations."""
    asked = _texts(row, "prompt")
    sides = {name: _dialogue(asked, _texts(row, name), name) for name in ("response_a", "response_b")}
    return {**{name: value for name, value in row.items() if name != "prompt"}, **sides}


def label_studio(row: Row) -> Row:
    """A task of Label Studio: its data as columns, and a vote for each annotation that was not cancelled."""
    data = row["data"]
    if not isinstance(data, dict):
        raise Defect("wrong_type", "data", "an object with the prompt and two responses", type_of(data))
    prompt, sides = _first(data, (*PROMPTS, "text")), _sides(data)
    if prompt is None or sides is None:
        expected = "a prompt and two responses named alike, as answer1 and answer2"
        raise Defect("missing_field", "data", expected, field_names(data))
    votes = list(_selected(row["annotations"]))
    if not votes:
        raise Defect("no_pair", "annotations", "an annotation of type pairwise", excerpt(row["annotations"]))
    people = {vote["annotator"] for vote in votes if vote["annotator"] is not None}
    return {
        **{name: value for name, value in data.items() if name not in (prompt, *sides)},
        **{name: row[name] for name in ("id", "project") if name in row},
        **({"annotator": people.pop()} if len(people) == 1 else {}),
        "prompt": data[prompt],
        "response_a": data[sides[0]],
        "response_b": data[sides[1]],
        "votes": votes,
    }


def _selected(annotations: Any) -> Any:
    """A vote for each pairwise result; raises `Defect` for annotations that are no list."""
    if not isinstance(annotations, list):
        raise Defect("wrong_type", "annotations", "a list of annotations", type_of(annotations))
    for annotation in annotations:
        if not isinstance(annotation, dict) or annotation.get("was_cancelled"):
            continue
        results = annotation.get("result")
        for result in results if isinstance(results, list) else []:
            value = result.get("value") if isinstance(result, dict) and result.get("type") == "pairwise" else None
            if isinstance(value, dict):
                yield {"annotator": _person(annotation.get("completed_by")), "label": value.get("selected")}


def _person(value: Any) -> str | None:
    if isinstance(value, dict):
        value = value.get("email") or value.get("id")
    return None if value is None else str(value)


def _placed(row: Row, column: str, beside: str) -> list[dict[str, Any]]:
    texts, places = row[column], row[beside]
    key = "rank" if beside in _RANKS else "score"
    if not isinstance(places, list) or len(places) != len(texts):
        expected = f"a {key} for each of the {len(texts)} responses"
        raise Defect("wrong_type", beside, expected, excerpt(places))
    return [{"response": text, key: place} for text, place in zip(texts, places, strict=True)]


def _dialogue(asked: Sequence[str], answers: Sequence[str], field: str) -> list[dict[str, str]]:
    if len(asked) != len(answers):
        raise Defect("turn_order", field, f"{len(asked)} turns, as prompt has", f"{len(answers)}")
    turns = [
        ({"role": "user", "content": q}, {"role": "assistant", "content": a})
        for q, a in zip(asked, answers, strict=True)
    ]
    return [turn for pair in turns for turn in pair]


def _texts(row: Row, column: str) -> list[str]:
    """The texts of a column: a list, a list in JSON, or one text."""
    value = row.get(column)
    if isinstance(value, str):
        try:
            loaded = orjson.loads(value) if value.startswith("[") else value
        except orjson.JSONDecodeError:
            loaded = value
        value = loaded if isinstance(loaded, list) else [value]
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise Defect("wrong_type", column, "a text, or a list of texts", type_of(value))
    return value


def _counted(value: Any, sides: tuple[str, str]) -> Any:
    """The verdict as a or b where it names a side by its column or by what the column ends with."""
    ends = [side.lstrip("_").lower() for side in _suffix(sides)]
    word = str(value).strip().lower() if not isinstance(value, bool) else ""
    if (number := number_of(value)) is not None:
        word = str(int(number)) if number == int(number) else word
    for side, column, end in zip(("a", "b"), sides, ends, strict=True):
        if word in (column.lower(), end):
            return side
    return value if read_side(value, {}) or not ends[0].isdecimal() else _by_number(value, ends)


def _by_number(value: Any, ends: Sequence[str]) -> Any:
    """A verdict such as `response 1` or `model_2`, beside columns that are counted so."""
    numbers: Mapping[float, Any] = {float(ends[0]): "a", float(ends[1]): "b"}
    return read_side(value, numbers) or value


def _suffix(sides: tuple[str, str]) -> tuple[str, str]:
    stem = next(stem for stem in _STEMS if sides[0].startswith(stem))
    return sides[0][len(stem) :], sides[1][len(stem) :]


def _sides(row: Row) -> tuple[str, str] | None:
    named = ((f"{stem}{first}", f"{stem}{second}") for stem in _STEMS for first, second in _SUFFIXES)
    return next((pair for pair in named if pair[0] in row and pair[1] in row), None)


def _better_worse(row: Row) -> tuple[str, str] | None:
    return next((pair for pair in BETTER_WORSE if pair[0] in row and pair[1] in row), None)


def _first(row: Row, names: Sequence[str]) -> str | None:
    return next((name for name in names if name in row), None)


def _renamed(row: Row, names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in row.items()}
