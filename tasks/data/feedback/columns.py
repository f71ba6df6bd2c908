"""Values of a row's columns: texts, messages and single responses, each read or refused with a named reason.

A message is `{"role": …, "content": …}`, or ShareGPT's `{"from": …, "value": …}`. Its content is a text, or a list of
parts that are texts. A field that is null counts as absent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from plumbline.data_contracts.preference_pair import excerpt
from plumbline.data_contracts.records import Message, Role
from plumbline.tasks.data.feedback.defects import Defect
from plumbline.tasks.data.feedback.hh_text import is_hh_text

Row = Mapping[str, Any]

OPTIONAL = frozenset({"id", "source", "annotator", "timestamp", "meta", "metadata"})
"""Fields that any format may carry."""

EXTRAS = frozenset({"label_kind", "votes", "margin", "score_chosen", "score_rejected"})
"""Known fields without a place in the record: they go into its metadata."""

TOOLS = ("tools", "functions", "tool_calls", "function_call")
"""Columns that offer tools or call them."""

_TEXTS = frozenset({"prompt", "chosen", "rejected", "completion", "messages", "conversations"})
ROLES = frozenset(get_args(Role))
"""Roles of a message."""

_SPEAKERS: Mapping[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
_CALLS = ("tool_calls", "function_call", "tool_call_id")


def value_at(row: Row, path: str) -> Any:
    """The value of a column, or of a field inside it (`data.prompt`, `info.0.text`); None if it is not there."""
    if path in row:
        return row[path]
    found: Any = row
    for name in path.split("."):
        if isinstance(found, Mapping):
            found = found.get(name)
        elif isinstance(found, list) and name.isdecimal() and int(name) < len(found):
            found = found[int(name)]
        else:
            return None
    return found


def text_of(row: Row, field: str) -> str:
    """A field that holds a string; raises `Defect` (`wrong_type`) for anything else."""
    value = value_at(row, field)
    if not isinstance(value, str):
        raise Defect("wrong_type", field, "a string, as the row's other texts are", type_of(value))
    return value


def messages_of(row: Row, field: str) -> tuple[Message, ...]:
    """A field that holds a message or a list of them; raises `Defect` with the first thing wrong."""
    value = value_at(row, field)
    if isinstance(value, dict) and is_message(value):
        value = [value]
    if not isinstance(value, list):
        expected = "a list of messages, as another of the row's texts is one"
        raise Defect("wrong_type", field, expected, type_of(value))
    try:
        return tuple(_message(item, f"{field}[{position}]") for position, item in enumerate(value))
    except Defect as defect:
        if defect.reason == "unknown_field":
            defect.unknown = unknown_in_messages(row)
        raise


def single_response(row: Row, field: str) -> str:
    """The text of a field that holds one message of the assistant; raises `Defect` for anything else."""
    turns = messages_of(row, field)
    if [turn.role for turn in turns] != ["assistant"]:
        reason = "turn_order" if turns else "empty_text"
        found = " ".join(turn.role for turn in turns) or "no message"
        raise Defect(reason, field, "one message, by the assistant", found)
    return turns[0].content


def is_message(value: object) -> bool:
    """True if a value is one message, of either spelling."""
    return isinstance(value, dict) and ({"role", "content"} <= value.keys() or {"from", "value"} <= value.keys())


def is_turns(value: object) -> bool:
    """True if a value is a list, as messages come, or one message."""
    return isinstance(value, list) or is_message(value)


def is_conversation(value: object) -> bool:
    """True if a value is a list of messages that begins before the assistant's turn."""
    if not isinstance(value, list) or len(value) < 2 or not is_message(value[0]):
        return False
    speaker = value[0].get("role", value[0].get("from"))
    return isinstance(speaker, str) and _SPEAKERS.get(speaker.lower()) in ("system", "user")


def unknown_in_messages(row: Row) -> tuple[str, ...]:
    """Fields of messages beside role and content, each once: `messages[].name`."""
    lists = [(name, value) for name, value in row.items() if name in _TEXTS and isinstance(value, list)]
    found = {
        f"{name}[].{key}"
        for name, messages in lists
        for message in messages
        if isinstance(message, dict)
        for key, value in message.items()
        if key not in ("role", "content", "from", "value") and value is not None
    }
    return tuple(sorted(found))


def refuse_tools(row: Row) -> None:
    """Raise `Defect` (`tool_calls`) if a row offers tools: the record has no place for them."""
    for name in TOOLS:
        if row.get(name):
            raise tool_defect(name, row[name])


def tool_defect(field: str, found: object) -> Defect:
    """The defect of a row that offers or calls tools."""
    expected = (
        "a conversation of texts: tool calls and lists of tools are not trained on. Leave these rows out, or write "
        "calls and results into the content of the messages"
    )
    return Defect("tool_calls", field, expected, excerpt(found))


def number_of(value: object) -> float | None:
    """A number, also one written as text; None for anything else, NaN and infinities among them."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if number == number and abs(number) != float("inf") else None


def is_hh(row: Row, field: str) -> bool:
    """True if a field holds a text in the HH format."""
    value = value_at(row, field)
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


def _message(item: object, place: str) -> Message:
    if not isinstance(item, dict):
        raise Defect("wrong_type", place, "a message: an object with role and content", type_of(item))
    present = {name: value for name, value in item.items() if value is not None}
    for name in _CALLS:
        if present.pop(name, None):
            raise tool_defect(f"{place}.{name}", item[name])
    if "role" not in present and "from" in present:
        present = _from_sharegpt(present, place)
    if present.get("role") == "developer":  # OpenAI's newer name
        present["role"] = "system"
    if isinstance(present.get("content"), list):
        present["content"] = _joined(present["content"])
    _check_message_fields(present, place)
    if present["role"] not in ROLES:
        expected = "system, user, assistant or tool"
        raise Defect("unknown_role", f"{place}.role", expected, excerpt(present["role"]))
    return Message(role=present["role"], content=present["content"])


def _from_sharegpt(message: Mapping[str, Any], place: str) -> dict[str, Any]:
    """A message of ShareGPT with the names of OpenAI's; a call of a function is refused."""
    speaker = message["from"]
    if speaker == "function_call":
        raise tool_defect(f"{place}.from", message.get("value"))
    rest = {name: value for name, value in message.items() if name not in ("from", "value")}
    role = _SPEAKERS.get(speaker.lower(), speaker) if isinstance(speaker, str) else speaker
    return rest | {"role": role} | ({"content": message["value"]} if "value" in message else {})


def _joined(parts: list[Any]) -> Any:
    """The text of a content of text parts; any other list as it is, to be refused."""
    texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in parts]
    return "".join(map(str, texts)) if parts and all(isinstance(text, str) for text in texts) else parts


def _check_message_fields(message: Mapping[str, object], place: str) -> None:
    for name in ("role", "content"):
        if name not in message:
            raise Defect("missing_field", f"{place}.{name}", "role and content", field_names(message))
        if not isinstance(message[name], str):
            raise Defect("wrong_type", f"{place}.{name}", "a string", type_of(message[name]))
    if unknown := sorted(set(message) - {"role", "content"}):
        found = "; ".join(f"{name}: {excerpt(message[name])}" for name in unknown[:8])
        raise Defect("unknown_field", f"{place}.{unknown[0]}", "role and content alone", found)
