"""Longest sampled completions in params: a number, or null where it follows from π_ref's own completions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel

from plumbline.tasks.params.section import Section

NEW_TOKENS, COMPLETION = "max_new_tokens", "max_completion_length"
"""The fields that bear such a length, by the names of transformers and of TRL's trainers."""

MOST = 32_768
"""The largest length in tokens that params take."""

FOLLOWS = "null: training.max_completion_length, else what π_ref's own completions need."
"""The end of the description of each such field."""

Filled = TypeVar("Filled", bound=Section)


def with_length(section: Filled, length: int) -> Filled:
    """The section in which every length that is null, at any depth, is `length` tokens."""
    return section.model_copy(update=dict(_filled(section, length)))


def lacks_length(section: BaseModel) -> bool:
    """True if a length of the section, at any depth, is null."""
    return any(
        lacks_length(value) if isinstance(value, BaseModel) else name in (NEW_TOKENS, COMPLETION) and value is None
        for name, value in section
    )


def settled(length: int | None) -> int:
    """A length for a noun, which a verb has settled before (`with_length`)."""
    assert length is not None, "a length is null: the verb settles it before a noun reads it"
    return length


def share_length(document: Mapping[str, Any], length: int) -> dict[str, Any]:
    """The sections of a document that sample outside of training, filled where they set no length."""
    return {
        name: {NEW_TOKENS: length, **section}
        for name in ("evaluation", "self_play")
        if isinstance(section := document.get(name, {}), Mapping)
    }


def _filled(section: BaseModel, length: int) -> Iterator[tuple[str, Any]]:
    for name, value in section:
        if isinstance(value, Section) and lacks_length(value):
            yield name, with_length(value, length)
        elif name in (NEW_TOKENS, COMPLETION) and value is None:
            yield name, length
