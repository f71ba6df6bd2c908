"""Pairs: the prompt and both responses of a row, from whatever its reader says where they are."""

from __future__ import annotations

import re
from collections.abc import Sequence

from plumbline.data_contracts.preference_pair import excerpt
from plumbline.data_contracts.records import Message
from plumbline.tasks.data.feedback.columns import (
    Row,
    is_conversation,
    is_hh,
    is_message,
    is_turns,
    messages_of,
    number_of,
    single_response,
    text_of,
    value_at,
)
from plumbline.tasks.data.feedback.defects import Defect
from plumbline.tasks.data.feedback.hh_text import parse_prompt, parse_response, split_conversation
from plumbline.tasks.data.feedback.readers import Reader, RowContent, scores_of, wrong
from plumbline.tasks.data.feedback.verdicts import Numbers, Signed

_FULL = ("messages", "conversations")  # columns that may end with the very response that is judged

Parts = tuple[tuple[Message, ...], str, str]
"""A prompt and the responses of a row, in the order of its columns."""


def pair_content(reader: Reader, row: Row, numbers: Numbers) -> RowContent:
    """The comparison of a row that its reader takes for one; raises `Defect` with the first thing wrong.

    Types come first, then the verdict: a tie is a tie, whatever the responses hold.
    """
    row = reader.flat(row)
    _check_types(reader, row)
    swapped = False
    if reader.verdict is not None:
        side = reader.verdict.side(row, numbers)
        if side == "tie":
            column = reader.verdict.columns[0]
            raise Defect("tie", column, "a preference: a or b", excerpt(value_at(row, column)))
        swapped = side == "b"
    prompt, first, second = _parts(reader, row)
    facts = reader.kept(row) | (scores_of(row, reader.scores, swapped=swapped) if reader.scores else {})
    if isinstance(reader.verdict, Signed):
        facts["margin"] = abs(number_of(value_at(row, reader.verdict.column)) or 0.0)
    first, second = (second, first) if swapped else (first, second)
    return RowContent(prompt, first, second, facts, row)


def tied_content(reader: Reader, row: Row) -> RowContent:
    """The comparison of a row whose verdict is a tie, its responses in the order of the columns; raises `Defect`."""
    row = reader.flat(row)
    _check_types(reader, row)
    prompt, first, second = _parts(reader, row)
    return RowContent(prompt, first, second, reader.kept(row), row)


def prompt_turns(reader: Reader, row: Row) -> tuple[Message, ...]:
    """The turns of a prompt column, with the system turn and the history that stand beside it."""
    column = _column(reader.prompt)
    value = value_at(row, column)
    if isinstance(value, list) or is_message(value):
        turns = messages_of(row, column)
    elif is_hh(row, column):
        turns = parse_prompt(text_of(row, column))
    else:
        turns = (Message(role="user", content=_with_context(reader, row, text_of(row, column))),)
    turns = (*_history(reader, row), *turns)
    system = row.get(reader.system) if reader.system else None
    if system is None or system == "" or (turns and turns[0].role == "system"):
        return turns
    if not isinstance(system, str):
        raise wrong(reader.system or "", "a string", row)
    return (Message(role="system", content=system), *turns)


def _check_types(reader: Reader, row: Row) -> None:
    """Raise `Defect` (`wrong_type`) unless prompt and sides are texts or messages, and both sides alike."""
    if reader.prompt is not None and not is_turns(value_at(row, reader.prompt)):
        text_of(row, reader.prompt)
    for column in reader.sides or ():
        if not is_turns(value_at(row, column)):
            text_of(row, column)
    first, second = _sides(reader)
    if isinstance(value_at(row, first), str):
        text_of(row, second)
    elif isinstance(value_at(row, second), str):
        messages_of(row, second)


def _parts(reader: Reader, row: Row) -> Parts:
    first, second = _sides(reader)
    texts = isinstance(value_at(row, first), str)
    if reader.prompt is None:
        return _implicit(row, first, second) if texts else _conversations(row, first, second)
    prompt = prompt_turns(reader, row)
    if texts:
        return prompt, *_responses(reader, row, first, second)
    if is_conversation(value_at(row, first)) or is_conversation(value_at(row, second)):
        return _repeated(reader, row, prompt, first, second)
    responses = single_response(row, first), single_response(row, second)
    if reader.prompt in _FULL and prompt and prompt[-1].role == "assistant" and prompt[-1].content in responses:
        prompt = prompt[:-1]
    return prompt, *responses


def _responses(reader: Reader, row: Row, first: str, second: str) -> tuple[str, str]:
    """Two texts, read in the way of an HH prompt if there is one."""
    texts = text_of(row, first), text_of(row, second)
    column = _column(reader.prompt)
    if not is_hh(row, column):
        return texts
    prompt = text_of(row, column)
    return parse_response(texts[0], first, prompt), parse_response(texts[1], second, prompt)


def _repeated(reader: Reader, row: Row, prompt: tuple[Message, ...], first: str, second: str) -> Parts:
    """Whole conversations beside a prompt that they repeat: the prompt is what they share."""
    shared, one, other = _conversations(row, first, second)
    same = [turn for turn in prompt if turn.role != "system"] == [turn for turn in shared if turn.role != "system"]
    said = {turn.content.strip() for turn in shared}
    if not same and not (isinstance(row.get(_column(reader.prompt)), str) and prompt[-1].content.strip() in said):
        expected = f"a prompt that {first} and {second} repeat, or no prompt beside whole conversations"
        raise Defect(
            "no_shared_prompt", _column(reader.prompt), expected, excerpt(prompt[-1].content if prompt else "")
        )
    return (shared if len(shared) >= len(prompt) else prompt), one, other


def _conversations(row: Row, first: str, second: str) -> Parts:
    turns = {name: messages_of(row, name) for name in (first, second)}
    for name, conversation in turns.items():
        if not conversation:
            raise Defect("empty_text", name, "messages that end with the assistant's", "no message")
        if conversation[-1].role != "assistant":
            expected = "messages that end with the assistant's"
            raise Defect("turn_order", name, expected, f"a last message by {conversation[-1].role}")
    one, other = turns[first], turns[second]
    return _with_shared_prompt(one[:-1], one[-1].content, other[:-1], other[-1].content, (first, second))


def _implicit(row: Row, first: str, second: str) -> Parts:
    """Two texts that begin with the prompt: HH conversations, or any texts with a common start."""
    one, other = text_of(row, first), text_of(row, second)
    for name, text in ((first, one), (second, other)):
        if not text.strip():
            raise Defect("empty_text", name, "a text with a visible character", excerpt(text))
    if is_hh(row, first) or is_hh(row, second):
        return _with_shared_prompt(*split_conversation(one, first), *split_conversation(other, second), (first, second))
    return _implicit_text(one, other)


def _with_shared_prompt(
    prompt: tuple[Message, ...], chosen: str, other: tuple[Message, ...], rejected: str, names: tuple[str, str]
) -> Parts:
    expected = f"{names[0]} and {names[1]} to share every turn but the last"
    if prompt != other:
        found = f"turns that differ from turn {_common_length(prompt, other) + 1} on"
        raise Defect("no_shared_prompt", names[1], expected, found)
    if not prompt:
        raise Defect("no_shared_prompt", names[0], expected, "a single turn, without a prompt before it")
    return prompt, chosen, rejected


def _implicit_text(chosen: str, rejected: str) -> Parts:
    """Two texts with a common start, which is the prompt, as one turn of the user.

    TRL's `extract_prompt` cuts where the characters first differ; here the cut goes back to the end of a
    word, or responses that begin alike ("blue", "black") would leave half a word in the prompt.
    """
    if chosen.split() == rejected.split():
        raise Defect("identical_responses", "rejected", "a text that differs from chosen", excerpt(rejected))
    common = chosen[: _common_length(chosen, rejected)]
    at_word_end = all(text[len(common) :][:1].isspace() for text in (chosen, rejected))
    last_space = None if at_word_end else re.search(r"\s\S*\Z", common)
    cut = len(common) if at_word_end else last_space.start() if last_space else 0
    prompt = common[:cut].strip()
    if not prompt:
        found = f"{excerpt(chosen)} and {excerpt(rejected)}"
        expected = "the same prompt at the start of chosen and rejected, or a column with the prompt"
        raise Defect("no_shared_prompt", "rejected", expected, found)
    return (Message(role="user", content=prompt),), chosen[cut:].strip(), rejected[cut:].strip()


def _common_length(first: Sequence[object], second: Sequence[object]) -> int:
    shortest = min(len(first), len(second))
    return next((n for n in range(shortest) if first[n] != second[n]), shortest)


def _with_context(reader: Reader, row: Row, text: str) -> str:
    """An instruction and its input as one text, a blank line between them."""
    context = row.get(reader.context) if reader.context else None
    if context is None or (isinstance(context, str) and not context.strip()):
        return text
    if not isinstance(context, str):
        raise wrong(reader.context or "", "a string", row)
    return f"{text}\n\n{context}"


def _history(reader: Reader, row: Row) -> tuple[Message, ...]:
    """Earlier turns, as pairs of what the user and the assistant said."""
    turns = row.get(reader.history) if reader.history else None
    if not turns:
        return ()
    pairs = turns if isinstance(turns, list) else [turns]
    if not all(isinstance(pair, list) and [type(text) for text in pair] == [str, str] for pair in pairs):
        raise wrong(reader.history or "", "a list of pairs of texts, the user's and the assistant's", row)
    return tuple(
        Message(role=role, content=text)
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    )


def _sides(reader: Reader) -> tuple[str, str]:
    assert reader.sides is not None, f"{reader.name} has no sides"
    return reader.sides


def _column(name: str | None) -> str:
    assert name is not None, "a reader without this column"
    return name
