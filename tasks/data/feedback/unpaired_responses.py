"""Source `unpaired_responses`: single responses with a thumb, from files in any known format to one record type.

| format                        | fields                                                                             |
|-------------------------------|------------------------------------------------------------------------------------|
| `trl_unpaired`                | `prompt`, `completion`: strings; `label`: true or false                            |
| `trl_unpaired_conversational` | `prompt`: messages; `completion`: one message in a list, or a string; `label`      |
| `thumb`                       | `prompt`: a string or messages; `response`: a string; `thumb`: up or down          |
| `conversation_thumb`          | `messages`: a conversation that ends with the judged response; `thumb`             |

A prompt that is a string in the HH format is read as its turns. The first two are TRL's
(https://huggingface.co/docs/trl/dataset_formats#unpaired-preference), the others what applications export. A label or
thumb is true, 1, up or thumbs_up; or false, 0 (a label) or -1 (a thumb), down or thumbs_down. A thumb that is absent,
null, 0, none or neutral is no opinion.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from plumbline.data_contracts.contract_suite import excerpt
from plumbline.data_contracts.records import Message, Origin, UnpairedResponse
from plumbline.tasks.data.feedback.defects import Defect
from plumbline.tasks.data.feedback.formats import (
    Row,
    field_names,
    is_hh,
    messages_of,
    refuse_unknown,
    single_response,
    text_of,
)
from plumbline.tasks.data.feedback.hh_text import parse_prompt, parse_response
from plumbline.tasks.data.feedback.rows import ReadRow, RowReading, Rows, about, identifier, read_rows
from plumbline.tasks.params.feedback_limits import LIMITS, Limits

SOURCE = "unpaired_responses"

_FIELDS: Mapping[str, tuple[str, ...]] = {
    "trl_unpaired": ("prompt", "completion", "label"),
    "trl_unpaired_conversational": ("prompt", "completion", "label"),
    "thumb": ("prompt", "response", "thumb"),
    "conversation_thumb": ("messages", "thumb"),
}
_WORDS = {"true": True, "up": True, "thumbs_up": True, "false": False, "down": False, "thumbs_down": False}
_NUMBERS: Mapping[str, Mapping[float, bool]] = {"label": {1: True, 0: False}, "thumb": {1: True, -1: False}}
_NEUTRAL = (0, "0", "none", "neutral", "")


def read(rows: Rows, origin: str, limits: Limits = LIMITS) -> Iterator[ReadRow]:
    """Read every row of a file, or of the texts given, in order; `origin` names the file in records and quarantine.

    Raises `UsageError` when the file itself cannot be read.
    """
    return read_rows(rows, origin, RowReading(recognise, _build, _known_label), limits)


def recognise(row: Row) -> str:
    """The format of a row, from which fields it has; raises `Defect` (`missing_field`) when it has those of none."""
    if "completion" in row:
        listed = any(isinstance(row.get(name), list) for name in ("prompt", "completion"))
        return "trl_unpaired_conversational" if listed else "trl_unpaired"
    if "response" in row:
        return "thumb"
    if "messages" in row:
        return "conversation_thumb"
    expected = "completion and label, response and thumb, or messages and thumb"
    raise Defect("missing_field", "completion", expected, field_names(row))


def _build(row: Row, form: str, origin: Origin) -> UnpairedResponse:
    _check_fields(row, form)
    # The thumb is read before the texts: no opinion is none, whatever the texts hold.
    desirable = _opinion(row, _FIELDS[form][-1])
    prompt, response = _content(row, form)
    found = UnpairedResponse(
        id="", prompt=prompt, response=response, desirable=desirable, origin=origin, **about(row, SOURCE)
    )
    return found.model_copy(update={"id": identifier(row, "id") or found.content_id()})


def _check_fields(row: Row, form: str) -> None:
    needed = _FIELDS[form]
    for name in needed:
        if name not in row and name != "thumb":
            raise Defect("missing_field", name, f"{', '.join(needed)} (format {form})", field_names(row))
    refuse_unknown(row, needed, form)


def _opinion(row: Row, field: str) -> bool:
    value = row.get(field)
    found = _read_opinion(value, field)
    if found is not None:
        return found
    if field == "thumb" and (value is None or _folded(value) in _NEUTRAL):
        raise Defect("no_opinion", field, "up or down", excerpt(value))
    if not isinstance(value, (str, int, float)):
        raise Defect("wrong_type", field, "true, false, up or down", excerpt(value))
    raise Defect("bad_label", field, "true, false, up or down", excerpt(value))


def _read_opinion(value: object, field: str) -> bool | None:
    """The opinion of a label or thumb; None if it is neither."""
    if isinstance(value, bool):
        return value
    if isinstance(value, (int, float)):  # a column of whole numbers with gaps comes as floats
        return _NUMBERS[field].get(value)
    return _WORDS.get(value.strip().lower()) if isinstance(value, str) else None


def _folded(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value


def _content(row: Row, form: str) -> tuple[tuple[Message, ...], str]:
    if form == "conversation_thumb":
        turns = messages_of(row, "messages")
        if not turns or turns[-1].role != "assistant":
            found = f"a last message by {turns[-1].role}" if turns else "no message"
            reason = "turn_order" if turns else "empty_text"
            raise Defect(reason, "messages", "messages that end with the assistant's", found)
        return turns[:-1], turns[-1].content
    field = _FIELDS[form][1]
    response = single_response(row, field) if isinstance(row[field], list) else text_of(row, field)
    if isinstance(row["prompt"], list):
        return messages_of(row, "prompt"), response
    text = text_of(row, "prompt")
    if is_hh(row, "prompt"):
        return parse_prompt(text), parse_response(response, field, text)
    return (Message(role="user", content=text),), response


def _known_label(row: Mapping[str, Any]) -> str | None:
    for field in ("label", "thumb"):
        found = _read_opinion(row.get(field), field)
        if found is not None:
            return "up" if found else "down"
    return None
