"""The form of an answer, and what came back read strictly: a verdict of that form, or a named reason for none.

Nothing is repaired: no verdict is fished out of prose, out of a code fence, or out of the first of two objects.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from plumbline.tasks.training.rewards.judges.rubric import Mode

Reason = Literal[
    "unreachable",  # no connection, or status 408, 409, 429, 5xx, after all attempts
    "timeout",  # silent too long at every attempt, or not done by the deadline
    "rejected",  # the server refused this request: status 4xx
    "bad_response",  # status 200, and no chat completion
    "truncated",  # cut off at max_tokens
    "refused",  # the model or a content filter declined
    "empty",
    "not_json",  # prose, or prose around JSON
    "two_verdicts",  # two objects, or one key twice
    "wrong_schema",
    "out_of_range",  # a candidate that was not shown
    "duplicate_rank",
    "incomplete",  # a candidate is missing from the ranking
]
TRANSPORT: frozenset[Reason] = frozenset({"unreachable", "timeout"})
"""Reasons that say nothing about the question: asking again later may work."""

_SHOWN = 120  # characters of an answer in a message


class Reply(BaseModel):
    """The parts of a chat completion that are read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    content: str | None
    refusal: str | None
    finish_reason: str | None
    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)


@dataclass(frozen=True, slots=True)
class Unusable:
    """No verdict, and why. `found` is a bounded excerpt, made by the judge or its server."""

    reason: Reason
    found: str


Places = tuple[float, ...]
"""Place of the candidate at each position, 1 is best; a tie of two is (1.5, 1.5)."""


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int = Field(0, ge=0)
    completion_tokens: int = Field(0, ge=0)


class _Completion(BaseModel):
    """The part of OpenAI's chat completion that is read. Servers differ in the rest."""

    choices: list[_Choice] = Field(min_length=1, max_length=1)
    usage: _Usage | None = None


class _Pair(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    winner: str


class _Ranking(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    ranking: list[str]


class _RepeatedKeyError(ValueError):
    """A JSON object gives one key twice; json and pydantic would take the last."""


def response_format(mode: Mode, labels: str, structured: str) -> dict[str, Any] | None:
    """The `response_format` of a request: an answer's JSON schema, "any JSON object", or none."""
    if structured == "none":
        return None
    if structured == "json_object":
        return {"type": "json_object"}
    value: dict[str, Any]
    if mode == "pairwise":
        key, value = "winner", {"type": "string", "enum": [*labels, "tie"]}
    else:
        # strict mode of OpenAI knows no uniqueItems: the parser checks that each label stands once
        key, value = "ranking", {"type": "array", "items": {"type": "string", "enum": list(labels)}}
    schema = {"type": "object", "properties": {key: value}, "required": [key], "additionalProperties": False}
    return {"type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": schema}}


def read_reply(body: bytes) -> Reply | Unusable:
    """The reply in the body of a successful response."""
    try:
        completion = _Completion.model_validate_json(body)
    except ValidationError:
        return Unusable("bad_response", excerpt(body.decode(errors="replace")))
    choice, usage = completion.choices[0], completion.usage or _Usage()
    return Reply(
        content=choice.message.content,
        refusal=choice.message.refusal,
        finish_reason=choice.finish_reason,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
    )


def read_verdict(reply: Reply, mode: Mode, labels: Sequence[str]) -> Places | Unusable:
    """Places by position, or why the reply is no verdict about `labels`."""
    if reply.refusal is not None or reply.finish_reason == "content_filter":
        return Unusable("refused", excerpt(reply.refusal or reply.content or ""))
    content = (reply.content or "").strip()
    if reply.finish_reason == "length":
        return Unusable("truncated", excerpt(content))
    if not content:
        return Unusable("empty", "")
    value = _one_object(content)
    if isinstance(value, Unusable):
        return value
    return _pair(value, labels) if mode == "pairwise" else _ranking(value, labels)


def excerpt(text: str) -> str:
    """A short, one-line, printable piece of text for a message."""
    cut = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
    return repr(cut)


def _one_object(content: str) -> dict[str, Any] | Unusable:
    decoder = json.JSONDecoder(object_pairs_hook=_without_repeats)
    try:
        value, end = decoder.raw_decode(content)
    except _RepeatedKeyError:
        return Unusable("two_verdicts", excerpt(content))
    except (ValueError, RecursionError):
        return Unusable("not_json", excerpt(content))
    rest = content[end:].lstrip(" \t\r\n,;")
    if rest:
        return Unusable("two_verdicts" if rest.startswith("{") else "not_json", excerpt(content))
    if end != len(content):
        return Unusable("not_json", excerpt(content))
    return value if isinstance(value, dict) else Unusable("wrong_schema", excerpt(content))


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise _RepeatedKeyError
    return values


def _pair(value: dict[str, Any], labels: Sequence[str]) -> Places | Unusable:
    try:
        winner = _Pair.model_validate(value).winner
    except ValidationError:
        return Unusable("wrong_schema", excerpt(json.dumps(value)))
    places: dict[str, Places] = {labels[0]: (1.0, 2.0), labels[1]: (2.0, 1.0), "tie": (1.5, 1.5)}
    return places.get(winner) or Unusable("out_of_range", excerpt(winner))


def _ranking(value: dict[str, Any], labels: Sequence[str]) -> Places | Unusable:
    try:
        ranking = _Ranking.model_validate(value).ranking
    except ValidationError:
        return Unusable("wrong_schema", excerpt(json.dumps(value)))
    found = excerpt(json.dumps(ranking))
    if not set(ranking) <= set(labels):
        return Unusable("out_of_range", found)
    if len(set(ranking)) < len(ranking):
        return Unusable("duplicate_rank", found)
    if len(ranking) < len(labels):
        return Unusable("incomplete", found)
    return tuple(ranking.index(label) + 1.0 for label in labels)
