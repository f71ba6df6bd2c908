"""Defects planted into clean feedback rows: what each one looks like.

Every function takes one clean row and returns the defective one and the details that tests need.
Edits of near duplicates touch one common word, case or punctuation, so that any reasonable measure
(word or character shingles, weighted or not) keeps the two rows above a Jaccard similarity of 0.8.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

import orjson

from plumbline.tasks.data.sample_world.annotators import TEMPERATURES

Row = dict[str, Any]
Planted = tuple[bytes, dict[str, Any]]

LEAKS = (
    "A is preferred because it is more helpful.",
    "[label: chosen]",
    "Response A is better than response B.",
    "(annotator: this is the better answer)",
)
_OVERLONG = "We are still looking into it and will write to you again as soon as we know more. "
_OVERLONG_REPEATS = 60  # about 1,000 words, many times any context that a tiny model has
_UNKNOWN = ("labeller_mood", "confidence_pct", "internal_flag")


def dump_row(row: Row) -> bytes:
    """One JSON line, without its newline, keys in the order of the row."""
    return orjson.dumps(row)


def exact_duplicate(row: Row, rng: Random) -> Planted:
    """The same row handed in again: only id and timestamp differ."""
    return dump_row(row), {}


def near_duplicate(row: Row, rng: Random) -> Planted:
    """The same row after a small edit of its user turn, often with another case or spacing on top."""
    row = copy.deepcopy(row)
    edits = [rng.choice(sorted(_EDITS))]
    if rng.random() < 0.5:
        edits.append(rng.choice(sorted(_LAYOUT)))
    turn = row["prompt"][-1]
    for edit in edits:
        turn["content"] = (_EDITS | _LAYOUT)[edit](turn["content"])
    if rng.random() < 0.5:
        edits.append("response_spacing")
        row["rejected"][0]["content"] += " "
    return dump_row(row), {"edits": edits}


def contradiction(row: Row, rng: Random) -> Planted:
    """The same pair with the labels swapped, from another annotator."""
    row = copy.deepcopy(row)
    row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    row["annotator"] = rng.choice([name for name in TEMPERATURES if name != row["annotator"]])
    return dump_row(row), {}


def leaked_label(row: Row, rng: Random) -> Planted:
    """A sentence that tells the label, before or after the text of the prompt or of the chosen response."""
    row = copy.deepcopy(row)
    field = rng.choice(("chosen", "prompt"))
    turn = row[field][-1]
    leak, clean = rng.choice(LEAKS), turn["content"]
    turn["content"] = f"{leak} {clean}" if rng.random() < 0.5 else f"{clean} {leak}"
    return dump_row(row), {"field": field, "leak": leak, "clean": clean}


def empty_response(row: Row, rng: Random) -> Planted:
    """A response without text."""
    row = copy.deepcopy(row)
    field = rng.choice(("chosen", "rejected"))
    row[field][0]["content"] = rng.choice(("", "   ", "\n"))
    return dump_row(row), {"field": field}


def overlong_response(row: Row, rng: Random) -> Planted:
    """A response of about 1,000 words."""
    row = copy.deepcopy(row)
    field = rng.choice(("chosen", "rejected"))
    row[field][0]["content"] += " " + (_OVERLONG * _OVERLONG_REPEATS).rstrip()
    return dump_row(row), {"field": field}


def broken_json(row: Row, rng: Random) -> Planted:
    """A line that was cut off in the middle."""
    line = dump_row(row)
    return line[: rng.randrange(len(line) // 3, len(line) - 1)], {}


def wrong_type(row: Row, rng: Random) -> Planted:
    """A field whose value has a type that no format allows."""
    row = copy.deepcopy(row)
    field, value = rng.choice((("chosen", 7), ("rejected", {"text": "no"}), ("prompt", 3.5), ("annotator", ["a", "b"])))
    row[field] = value
    return dump_row(row), {"field": field}


def unknown_field(row: Row, rng: Random) -> Planted:
    """A field that no format knows."""
    field = rng.choice(_UNKNOWN)
    return dump_row({**row, field: 1}), {"field": field}


_EDITS: dict[str, Callable[[str], str]] = {
    "please": lambda text: f"{text} Please!",
    "punctuation": lambda text: text.rstrip("?.") + " !",
    "thanks": lambda text: f"{text} Thanks.",
}
_LAYOUT: dict[str, Callable[[str], str]] = {
    "lower_case": str.lower,
    "spacing": lambda text: "  ".join(text.split(" ")),
}

# Kind of defect -> how it is made. Kinds of the first group repeat another row, which is left as it was.
REPEATING: Mapping[str, Callable[[Row, Random], Planted]] = {
    "exact_duplicate": exact_duplicate,
    "near_duplicate": near_duplicate,
    "contradiction": contradiction,
}
SPOILING: Mapping[str, Callable[[Row, Random], Planted]] = {
    "leaked_label": leaked_label,
    "empty_response": empty_response,
    "overlong_response": overlong_response,
    "broken_json": broken_json,
    "wrong_type": wrong_type,
    "unknown_field": unknown_field,
}
