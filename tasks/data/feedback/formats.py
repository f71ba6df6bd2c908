r"""The formats in which preference pairs come, recognised row by row from the fields and their types.

| format                      | fields                                                                     |
|-----------------------------|----------------------------------------------------------------------------|
| `trl_standard`              | `prompt`, `chosen`, `rejected`: strings                                    |
| `trl_standard_hh_prompt`    | the same, with HH text as the prompt                                       |
| `trl_conversational`        | `prompt`: messages; `chosen`, `rejected`: one message each, or strings     |
| `implicit_prompt`           | `chosen`, `rejected`: messages or strings that start with the same prompt  |
| `hh_text`                   | `chosen`, `rejected`: HH text, `\n\nHuman: … \n\nAssistant: …`             |
| `response_label`            | `prompt`, `response_a`, `response_b`: strings; `label`: `a`, `b` or `tie`  |
| `response_label_hh_prompt`  | the same, with HH text as the prompt                                       |

A message is `{"role": …, "content": …}`. A field that is null counts as absent. The format names
follow https://huggingface.co/docs/trl/dataset_formats.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from plumbline.data_contracts.preference_pair import excerpt
from plumbline.data_contracts.records import Message, Role
from plumbline.tasks.data.feedback.defects import Defect
from plumbline.tasks.data.feedback.hh_text import is_hh_text, parse_prompt, parse_response, split_conversation

Format = Literal[
    "trl_standard",
    "trl_standard_hh_prompt",
    "trl_conversational",
    "implicit_prompt",
    "hh_text",
    "response_label",
    "response_label_hh_prompt",
]
Row = Mapping[str, Any]

OPTIONAL = frozenset({"id", "source", "annotator", "timestamp", "meta", "metadata"})
"""Fields that any format may carry."""

EXTRAS = frozenset({"label_kind", "votes", "margin", "score_chosen", "score_rejected"})
"""Known fields without a place in the record: they go into its metadata."""

_TEXTS = frozenset({"prompt", "chosen", "rejected", "completion", "messages"})
_SHOWN = 8  # unknown fields shown with their values
_ROLES = frozenset(get_args(Role))
_LABELS = ("a", "b", "tie")


@dataclass(frozen=True, slots=True)
class RowContent:
    """The content of a row: the prompt, the response people preferred, and the one they did not."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str


def recognise(row: Row) -> Format:
    """The format of a row, from which fields it has and whether they are texts or messages.

    Raises `Defect` (`missing_field`) when it has the fields of none.
    """
    if "response_a" in row or "response_b" in row:
        return "response_label_hh_prompt" if is_hh(row, "prompt") else "response_label"
    if "chosen" not in row and "rejected" not in row:
        expected = "chosen and rejected, or response_a, response_b and label"
        raise Defect("missing_field", "chosen", expected, field_names(row))
    if "prompt" not in row:
        return "hh_text" if is_hh(row, "chosen") or is_hh(row, "rejected") else "implicit_prompt"
    if any(isinstance(row.get(name), list) for name in ("prompt", "chosen", "rejected")):
        return "trl_conversational"
    return "trl_standard_hh_prompt" if is_hh(row, "prompt") else "trl_standard"


def read_content(row: Row, form: Format) -> RowContent:
    """Read a row in the format it was recognised as; raises `Defect` with the first thing wrong."""
    needed = _needed(form)
    for name in needed:
        if name not in row:
            raise Defect("missing_field", name, f"{', '.join(needed)} (format {form})", field_names(row))
    refuse_unknown(row, needed, form)
    if form == "trl_conversational":
        return _conversational(row)
    if form == "implicit_prompt" and isinstance(row["chosen"], list):
        return _implicit_messages(row)
    texts = [text_of(row, name) for name in needed if name != "label"]
    if form == "implicit_prompt":
        return _implicit_text(*texts)
    if form == "hh_text":
        return _hh_text(*texts)
    hh_prompt = form in ("trl_standard_hh_prompt", "response_label_hh_prompt")
    prompt = parse_prompt(texts[0]) if hh_prompt else (Message(role="user", content=texts[0]),)
    # The label is read before the responses: a tie is a tie, whatever its responses hold.
    swap = "label" in needed and read_label(row) == "b"
    first, second = (
        parse_response(text, name, texts[0]) if hh_prompt else text
        for text, name in zip(texts[1:], needed[1:3], strict=True)
    )
    return RowContent(prompt, second, first) if swap else RowContent(prompt, first, second)


def refuse_unknown(row: Row, needed: Sequence[str], form: str) -> None:
    """Raise `Defect` (`unknown_field`) that names every field which the format does not know."""
    unknown = sorted(set(row) - set(needed) - OPTIONAL - EXTRAS)
    if unknown:
        expected = f"the fields of format {form} ({', '.join(needed)}), and others inside metadata"
        found = "; ".join(f"{name}: {excerpt(row[name])}" for name in unknown[:_SHOWN])
        raise Defect("unknown_field", unknown[0], expected, found, (*unknown, *unknown_in_messages(row)))


def unknown_in_messages(row: Row) -> tuple[str, ...]:
    """Fields of messages beside role and content, each once: `messages[].name`."""
    lists = [(name, value) for name, value in row.items() if name in _TEXTS and isinstance(value, list)]
    found = {
        f"{name}[].{key}"
        for name, messages in lists
        for message in messages
        if isinstance(message, dict)
        for key, value in message.items()
        if key not in ("role", "content") and value is not None
    }
    return tuple(sorted(found))


def read_label(row: Row) -> Literal["a", "b"]:
    """The label of a `response_label` row; raises `Defect` (`tie`) if neither was preferred."""
    label = row["label"]
    if not isinstance(label, str):
        raise Defect("wrong_type", "label", "a string: a, b or tie", type_of(label))
    if label not in _LABELS:
        raise Defect("bad_label", "label", "a, b or tie", excerpt(label))
    if label == "tie":
        raise Defect("tie", "label", "a preference: a or b", excerpt(label))
    return "a" if label == "a" else "b"


def _needed(form: Format) -> tuple[str, ...]:
    if form in ("response_label", "response_label_hh_prompt"):
        return ("prompt", "response_a", "response_b", "label")
    if form in ("implicit_prompt", "hh_text"):
        return ("chosen", "rejected")
    return ("prompt", "chosen", "rejected")


def _conversational(row: Row) -> RowContent:
    prompt = messages_of(row, "prompt")
    if isinstance(row["chosen"], str):
        return RowContent(prompt, row["chosen"], text_of(row, "rejected"))
    return RowContent(prompt, single_response(row, "chosen"), single_response(row, "rejected"))


def single_response(row: Row, field: str) -> str:
    """The text of a field that holds one message of the assistant; raises `Defect` for anything else."""
    turns = messages_of(row, field)
    if [turn.role for turn in turns] != ["assistant"]:
        reason = "turn_order" if turns else "empty_text"
        found = " ".join(turn.role for turn in turns) or "no message"
        raise Defect(reason, field, "one message, by the assistant", found)
    return turns[0].content


def _implicit_messages(row: Row) -> RowContent:
    chosen, rejected = messages_of(row, "chosen"), messages_of(row, "rejected")
    for field, turns in (("chosen", chosen), ("rejected", rejected)):
        if not turns:
            raise Defect("empty_text", field, "messages that end with the assistant's", "no message")
        if turns[-1].role != "assistant":
            expected = "messages that end with the assistant's"
            raise Defect("turn_order", field, expected, f"a last message by {turns[-1].role}")
    return _with_shared_prompt(chosen[:-1], chosen[-1].content, rejected[:-1], rejected[-1].content)


def _hh_text(chosen: str, rejected: str) -> RowContent:
    _require_visible(chosen, rejected)
    return _with_shared_prompt(*split_conversation(chosen, "chosen"), *split_conversation(rejected, "rejected"))


def _with_shared_prompt(
    prompt: tuple[Message, ...], chosen: str, other_prompt: tuple[Message, ...], rejected: str
) -> RowContent:
    expected = "chosen and rejected to share every turn but the last"
    if prompt != other_prompt:
        found = f"turns that differ from turn {_common_length(prompt, other_prompt) + 1} on"
        raise Defect("no_shared_prompt", "rejected", expected, found)
    if not prompt:
        raise Defect("no_shared_prompt", "chosen", expected, "a single turn, without a prompt before it")
    return RowContent(prompt, chosen, rejected)


def _implicit_text(chosen: str, rejected: str) -> RowContent:
    """Two texts with a common start, which is the prompt, as one turn of the user.

    TRL's `extract_prompt` cuts where the characters first differ; here the cut goes back to the end of a
    word, or responses that begin alike ("blue", "black") would leave half a word in the prompt.
    """
    _require_visible(chosen, rejected)
    if chosen.split() == rejected.split():
        raise Defect("identical_responses", "rejected", "a text that differs from chosen", excerpt(rejected))
    common = chosen[: _common_length(chosen, rejected)]
    at_word_end = all(text[len(common) :][:1].isspace() for text in (chosen, rejected))
    last_space = None if at_word_end else re.search(r"\s\S*\Z", common)
    cut = len(common) if at_word_end else last_space.start() if last_space else 0
    prompt = common[:cut].strip()
    if not prompt:
        found = f"{excerpt(chosen)} and {excerpt(rejected)}"
        raise Defect("no_shared_prompt", "rejected", "the same prompt at the start of chosen and rejected", found)
    return RowContent((Message(role="user", content=prompt),), chosen[cut:].strip(), rejected[cut:].strip())


def _common_length(first: Sequence[object], second: Sequence[object]) -> int:
    shortest = min(len(first), len(second))
    return next((n for n in range(shortest) if first[n] != second[n]), shortest)


def _require_visible(chosen: str, rejected: str) -> None:
    for field, text in (("chosen", chosen), ("rejected", rejected)):
        if not text.strip():
            raise Defect("empty_text", field, "a text with a visible character", excerpt(text))


def text_of(row: Row, field: str) -> str:
    """A field that holds a string; raises `Defect` (`wrong_type`) for anything else."""
    value = row[field]
    if not isinstance(value, str):
        raise Defect("wrong_type", field, "a string, as the row's other texts are", type_of(value))
    return value


def messages_of(row: Row, field: str) -> tuple[Message, ...]:
    """A field that holds a list of messages; raises `Defect` with the first thing wrong."""
    value = row[field]
    if not isinstance(value, list):
        expected = "a list of messages, as another of the row's texts is one"
        raise Defect("wrong_type", field, expected, type_of(value))
    try:
        return tuple(_message(item, f"{field}[{position}]") for position, item in enumerate(value))
    except Defect as defect:
        if defect.reason == "unknown_field":
            defect.unknown = unknown_in_messages(row)
        raise


def _message(item: object, place: str) -> Message:
    if not isinstance(item, dict):
        raise Defect("wrong_type", place, "a message: an object with role and content", type_of(item))
    present = {name: value for name, value in item.items() if value is not None}
    _check_message_fields(present, place)
    if present["role"] not in _ROLES:
        expected = "system, user, assistant or tool"
        raise Defect("unknown_role", f"{place}.role", expected, excerpt(present["role"]))
    return Message(role=present["role"], content=present["content"])


def _check_message_fields(message: Mapping[str, object], place: str) -> None:
    for name in ("role", "content"):
        if name not in message:
            raise Defect("missing_field", f"{place}.{name}", "role and content", field_names(message))
        if not isinstance(message[name], str):
            raise Defect("wrong_type", f"{place}.{name}", "a string", type_of(message[name]))
    if unknown := sorted(set(message) - {"role", "content"}):
        found = "; ".join(f"{name}: {excerpt(message[name])}" for name in unknown[:_SHOWN])
        raise Defect("unknown_field", f"{place}.{unknown[0]}", "role and content alone", found)


def is_hh(row: Row, field: str) -> bool:
    """True if a field holds a text in the HH format."""
    value = row.get(field)
    return isinstance(value, str) and is_hh_text(value)


def type_of(value: object) -> str:
    """A JSON value's type and beginning."""
    names: Sequence[tuple[type, str]] = (
        (bool, "boolean"),
        (int, "number"),
        (float, "number"),
        (str, "string"),
        (list, "list"),
        (dict, "object"),
    )
    return next((f"{name} {excerpt(value)}" for kind, name in names if isinstance(value, kind)), "null")


def field_names(row: Mapping[str, object]) -> str:
    """The first fields of a row, for a message."""
    return f"fields {', '.join(sorted(row)[:8])}" if row else "no fields"
