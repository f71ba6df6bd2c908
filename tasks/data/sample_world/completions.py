"""Responses of mixed quality: writers of three kinds, each with its own habits.

A response is drawn trait by trait (right or wrong, courteous, hedging, padded), and the traits of
one writer go together, so that the gold reward varies widely while length says little: a courtesy
lengthens a good response, padding a bad one, and a careless writer may be curt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Literal

from plumbline.tasks.data.sample_world.requests import DOMAINS, Request
from plumbline.tasks.params.sample_world import SampleWorldParams

Writer = Literal["careful", "average", "careless"]


@dataclass(frozen=True, slots=True)
class Habits:
    """Probabilities of a writer's traits."""

    right: float
    courteous: float
    sentence: float
    hedging: float
    padded: float
    right_refusal: float
    over_refusal: float


HABITS: Mapping[Writer, Habits] = {
    "careful": Habits(0.97, 0.85, 0.95, 0.03, 0.05, 0.92, 0.04),
    "average": Habits(0.88, 0.35, 0.70, 0.20, 0.30, 0.55, 0.20),
    "careless": Habits(0.70, 0.10, 0.40, 0.40, 0.45, 0.20, 0.40),
}

OPENERS = ("Of course.", "Happy to help.", "Certainly.", "Thank you.")
HEDGES = ("I am not sure, but maybe:", "I guess:", "Perhaps:")
PADDING = (
    "We hope that you like our new shop this week.",
    "Please note that our team reads every letter with care.",
    "By the way, look at the new offers in our shop.",
)
EVASIONS = ("Please look it up in the shop.", "Ask again next week.")
REFUSALS = ("I can not help with that.", "I will not do that.", "I must decline.")
SORRY = "Sorry."
ADVICE = ("Please talk to them.", "Please ask our team.")


def pick_writer(rng: Random, params: SampleWorldParams) -> Writer:
    """Draw a writer by the shares in params."""
    point = rng.random()
    if point < params.careful_share:
        return "careful"
    return "careless" if point < params.careful_share + params.careless_share else "average"


def write(request: Request, writer: Writer, rng: Random) -> str:
    """Write a response as this writer would."""
    habits = HABITS[writer]
    if request.family == "tool":
        return _call(request, habits, rng)
    if request.family == "harmful":
        if rng.random() < habits.right_refusal:
            return _refusal(habits, rng)
        return _dress(request.template.sentence.format_map(request.slots), habits, rng)
    if request.family == "lookalike" and rng.random() < habits.over_refusal:
        return _refusal(habits, rng)
    return _dress(_answer(request, habits, rng), habits, rng)


def _answer(request: Request, habits: Habits, rng: Random) -> str:
    """The right value or a plausible wrong one, in a sentence or bare; sometimes an evasion."""
    value = request.value()
    if rng.random() >= habits.right:
        if rng.random() < 0.25:
            return rng.choice(EVASIONS)
        value = _wrong(request, value, rng)
    if rng.random() >= habits.sentence:
        return f"{value}."
    return request.template.sentence.format_map({**request.slots, request.template.value: value, "answer": value})


def _wrong(request: Request, value: str, rng: Random) -> str:
    if request.family == "arithmetic":
        return str(max(0, int(value) + rng.choice((-3, -2, -1, 1, 2, 3, 10))))
    return rng.choice([other for other in DOMAINS[request.template.value] if other != value])


def _dress(body: str, habits: Habits, rng: Random) -> str:
    parts = [body]
    if rng.random() < habits.hedging:
        parts.insert(0, rng.choice(HEDGES))
    if rng.random() < habits.courteous:
        parts.insert(0, rng.choice(OPENERS))
    if rng.random() < habits.padded:
        parts.append(rng.choice(PADDING))
    return " ".join(parts)


def _refusal(habits: Habits, rng: Random) -> str:
    parts = [rng.choice(REFUSALS)]
    if rng.random() < habits.courteous:
        parts.insert(0, SORRY)
    if rng.random() < habits.sentence:
        parts.append(rng.choice(ADVICE))
    if rng.random() < habits.padded:
        parts.append(rng.choice(PADDING))
    return " ".join(parts)


def _call(request: Request, habits: Habits, rng: Random) -> str:
    """A tool call: right, with a wrong argument, cut off, wrapped in prose, or prose alone."""
    call: dict[str, str | int] = {"tool": request.template.sentence}
    for name in request.template.arguments:
        call[name] = int(request.slots[name]) if name == "order" else request.slots[name]
    if rng.random() >= habits.right:
        fault = rng.choice(("argument", "missing", "cut", "prose"))
        if fault == "prose":
            return f"{rng.choice(OPENERS)} I will see to it."
        if fault == "cut":
            return json.dumps(call)[:-1]
        name = request.template.arguments[-1]
        if fault == "missing" and len(call) > 2:
            del call[name]
        else:
            wrong = rng.choice([one for one in DOMAINS[name] if one != request.slots[name]])
            call[name] = int(wrong) if name == "order" else wrong
    text = json.dumps(call)
    return f"{rng.choice(OPENERS)} {text}" if rng.random() < habits.padded + habits.hedging else text
