r"""Anthropic HH text: a conversation in one string, `\n\nHuman: … \n\nAssistant: …`.

The format of github.com/anthropics/hh-rlhf (Bai et al. 2022, arXiv:2204.05862): each turn starts
with a blank line, a speaker and a colon. White space around a turn is no part of it. Exports from other systems
end lines with CR LF, or leave the blank line out; where no turn of a text has one, a line that starts with a speaker
starts a turn.
"""

from __future__ import annotations

import re

from plumbline.data_contracts.preference_pair import excerpt
from plumbline.data_contracts.records import Message, Role
from plumbline.tasks.data.feedback.defects import Defect

_BLANK = r"\n[ \t]*\n[ \t]*"  # the end of a line, and a blank one
_MARKER = re.compile(rf"(?:\A\s*|{_BLANK})(Human|Assistant):")
_TIGHT_MARKER = re.compile(r"(?:\A\s*|\n[ \t]*)(Human|Assistant):")
_INNER = re.compile(rf"{_BLANK}(Human|Assistant):")
_TIGHT_INNER = re.compile(r"\n[ \t]*(Human|Assistant):")
_OPENING = re.compile(r"\A\s*Human:")
_OPENING_BLANK = re.compile(rf"\A\s*{_BLANK}Human:")
_REPLY = re.compile(r"\n[ \t]*Assistant:")
_ROLES: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}


def is_hh_text(text: str) -> bool:
    """True if a text opens as an HH conversation does.

    A text that merely starts with "Human:", without the blank line before it, must also hold a
    turn of the assistant: the word may open an ordinary sentence.
    """
    text = _unix(text)
    return bool(_OPENING_BLANK.match(text) or (_OPENING.match(text) and _REPLY.search(text)))


def parse_turns(text: str) -> tuple[Message, ...]:
    """The turns of an HH conversation, in order; a closing `Assistant:` gives a last, empty turn."""
    text = _unix(text)
    parts = (_TIGHT_MARKER if _is_tight(text) else _MARKER).split(text)  # before the first, then speaker, text, …
    return tuple(
        Message(role=_ROLES[speaker], content=content.strip())
        for speaker, content in zip(parts[1::2], parts[2::2], strict=True)
    )


def parse_prompt(text: str) -> tuple[Message, ...]:
    """The turns of an HH prompt, without the closing `Assistant:` that asks for the response."""
    turns = parse_turns(text)
    return turns[:-1] if turns[-1] == Message(role="assistant", content="") else turns


def parse_response(text: str, field: str, prompt: str = "") -> str:
    """A response to an HH prompt; raises `Defect` when a further turn begins inside it, in the way of the prompt."""
    text = _unix(text)
    if marker := (_TIGHT_INNER if prompt and _is_tight(_unix(prompt)) else _INNER).search(text):
        raise Defect("turn_order", field, "one turn of the assistant", f"another turn: {excerpt(marker[0])}")
    return text.strip()


def split_conversation(text: str, field: str) -> tuple[tuple[Message, ...], str]:
    """An HH conversation as prompt and response; raises `Defect` unless it ends with the assistant's turn."""
    turns = parse_turns(text)
    if not turns or turns[-1].role != "assistant":
        found = f"a last turn by {turns[-1].role}" if turns else f"no turns: {excerpt(text)}"
        raise Defect("turn_order", field, "a conversation that ends with the assistant's turn", found)
    return turns[:-1], turns[-1].content


def _unix(text: str) -> str:
    return text.replace("\r\n", "\n")


def _is_tight(text: str) -> bool:
    """True if turns follow one another without a blank line: none has one, and there is more than one."""
    return not _INNER.search(text.lstrip()) and bool(_TIGHT_INNER.search(text.lstrip()))
