"""Which tokens of a conversation the assistant speaks, found by rendering prefixes: no template has to mark them.

A turn begins where the tokens of its prompt (all messages before it, generation prompt on) and of the conversation
part, as a completion does (`chat.encode`), and ends with its end token, of which contents, being text, hold none. An
assistant turn that comes first answers nothing: it is read, not spoken. What follows the last assistant turn is left
out, because nothing is learned from it.

Templates that write an earlier turn otherwise than a last one, without its thoughts, say, are taken as they are: spoken
is what stands in the conversation.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from plumbline.data_contracts.records import Message
from plumbline.tasks.models.chat import common_prefix, encode_conversations, encode_prompts, end_token_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]


def encode_spoken(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[Message]]
) -> list[tuple[list[int], list[Span]]]:
    """Token ids of each conversation, and where the assistant speaks: start and stop of each turn, end token included.

    Raises `ModelError` when the template refuses a conversation or writes no end token.
    """
    end = end_token_id(tokenizer)
    turns = [[place for place, each in enumerate(talk) if each.role == "assistant"] for talk in conversations]
    talks = [talk[: places[-1] + 1] if places else talk for talk, places in zip(conversations, turns, strict=True)]
    answers = [[place for place in places if place > 0] for places in turns]
    wholes = encode_conversations(tokenizer, talks)
    heads = iter(encode_prompts(tokenizer, _up_to(talks, answers, 0)))
    # of the turns before the last one
    parts = iter(encode_conversations(tokenizer, _up_to(talks, [places[:-1] for places in answers], 1)))
    spoken = []
    for whole, places in zip(wholes, answers, strict=True):
        starts = [common_prefix(next(heads), whole) for _ in places]
        shared = [common_prefix(next(parts), whole) for _ in places[:-1]]
        spans = [_span(whole, *turn, end) for turn in zip(pairwise(starts), shared, strict=True)]
        if starts:
            spans.append((starts[-1], _behind_last(whole, starts[-1], len(whole), end) or len(whole)))
        spoken.append((whole[: spans[-1][1]] if spans else whole, spans))
    return spoken


def _up_to(talks: Sequence[Sequence[Message]], places: Sequence[Sequence[int]], more: int) -> list[Sequence[Message]]:
    return [talk[: place + more] for talk, at in zip(talks, places, strict=True) for place in at]


def _span(whole: Sequence[int], starts: tuple[int, int], shared: int, end: int) -> Span:
    """Start and stop of an earlier turn, from its start and the next one's, and how far it is as a last turn is."""
    start, following = starts
    stop = _behind_last(whole, start, shared, end)
    if stop is None:  # written otherwise than as a last turn
        stop = next((place + 1 for place in range(start, following) if whole[place] == end), max(start, shared))
    return start, stop


def _behind_last(ids: Sequence[int], start: int, stop: int, end: int) -> int | None:
    """The place behind the last end token between start and stop."""
    return next((place + 1 for place in range(stop - 1, start - 1, -1) if ids[place] == end), None)
