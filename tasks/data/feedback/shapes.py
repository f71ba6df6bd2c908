"""Shapes of other tools: a record as a row of the file that a tool reads. The readers read the same rows back.

A shape says what it carries beside the texts; `docs/guides/export.md` says what it has no room for. Rows hold model
text as it is: nothing is escaped, cut or rendered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from plumbline.data_contracts.records import Feedback, Message, PreferencePair, Role, UnpairedResponse
from plumbline.tasks.data.feedback.hh_text import is_hh_text

Container = Literal["jsonl", "json", "parquet"]
"""JSON lines, one JSON array, or Parquet."""

ABOUT = ("id", "source", "annotator", "timestamp", "metadata")
"""Fields of a record beside its texts that a row may carry."""


@dataclass(frozen=True, slots=True)
class ToolShape:
    """A tool's rows. `row` gives the one of a record; None: the shape has no room for its prompt.

    `carries`: fields of the record beside its texts that the row holds. `restates`: keys of the metadata that fields
    of the tool itself give anew. `containers`: files that the tool reads, the usual one first. `needs`: its prompts.
    """

    title: str
    kind: type[PreferencePair] | type[UnpairedResponse]
    row: Callable[[Any], dict[str, Any] | None]
    carries: tuple[str, ...] = ABOUT
    restates: frozenset[str] = frozenset()
    containers: tuple[Container, ...] = ("jsonl", "parquet")
    needs: str = "any prompt"


def _trl(pair: PreferencePair) -> dict[str, Any] | None:
    prompt = _one_turn(pair)
    if prompt is None:
        return None
    return {"prompt": prompt, "chosen": pair.chosen, "rejected": pair.rejected, **_about(pair)}


def _trl_conversational(pair: PreferencePair) -> dict[str, Any]:
    sides = {name: [_message("assistant", text)] for name, text in _sides(pair)}
    return {"prompt": _messages(pair.prompt), **sides, **_about(pair)}


def _trl_unpaired(single: UnpairedResponse) -> dict[str, Any] | None:
    prompt = _one_turn(single)
    if prompt is None:
        return None
    return {"prompt": prompt, "completion": single.response, "label": single.desirable, **_about(single)}


def _trl_unpaired_conversational(single: UnpairedResponse) -> dict[str, Any]:
    completion = [_message("assistant", single.response)]
    return {
        "prompt": _messages(single.prompt),
        "completion": completion,
        "label": single.desirable,
        **_about(single),
    }


def _openai(pair: PreferencePair) -> dict[str, Any]:
    return {
        "input": {"messages": _messages(pair.prompt), "tools": [], "parallel_tool_calls": True},
        "preferred_output": [_message("assistant", pair.chosen)],
        "non_preferred_output": [_message("assistant", pair.rejected)],
    }


_SPEAKERS: Mapping[Role, str] = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}


def _sharegpt(pair: PreferencePair) -> dict[str, Any]:
    turns = [{"from": _SPEAKERS[turn.role], "value": turn.content} for turn in pair.prompt]
    sides = {name: {"from": "gpt", "value": text} for name, text in _sides(pair)}
    return {"conversations": turns, **sides, **_about(pair)}


def _label_studio(pair: PreferencePair) -> dict[str, Any]:
    """A task with one completed annotation. The digest of the content says on which side the better response is.

    An annotation names no author: Label Studio refuses a file with one whom it does not know.
    """
    left = int(pair.content_id()[0], 16) % 2 == 0
    first, second = (pair.chosen, pair.rejected) if left else (pair.rejected, pair.chosen)
    selected = {"selected": "left" if left else "right"}
    result = {"type": "pairwise", "from_name": "preference", "to_name": "prompt", "value": selected}
    prompt = _one_turn(pair)
    return {
        "data": {
            "prompt": _messages(pair.prompt) if prompt is None else prompt,
            "answer1": first,
            "answer2": second,
            **_about(pair),
        },
        "annotations": [{"was_cancelled": False, "result": [result]}],
    }


_STANDARD = "a prompt of one turn, the user's, that does not look like several turns in one text"

SHAPES: Mapping[str, ToolShape] = {
    "trl": ToolShape("TRL's standard preference", PreferencePair, _trl, needs=_STANDARD),
    "trl-conversational": ToolShape("TRL's conversational preference", PreferencePair, _trl_conversational),
    "trl-unpaired": ToolShape(
        "TRL's standard unpaired preference (KTO)", UnpairedResponse, _trl_unpaired, needs=_STANDARD
    ),
    "trl-unpaired-conversational": ToolShape(
        "TRL's conversational unpaired preference (KTO)", UnpairedResponse, _trl_unpaired_conversational
    ),
    "openai": ToolShape("OpenAI's preference", PreferencePair, _openai, carries=(), containers=("jsonl",)),
    "sharegpt": ToolShape("ShareGPT conversations with two responses", PreferencePair, _sharegpt),
    "label-studio": ToolShape(
        "Label Studio's tasks with completed pairwise annotations",
        PreferencePair,
        _label_studio,
        restates=frozenset({"votes"}),
        containers=("json",),
    ),
}
"""Shape by the name that `plumbline export --to` takes."""


def _one_turn(record: Feedback) -> str | None:
    """The prompt as one text, if the user said it in one turn, and readers would not take it for several."""
    alone = [turn.role for turn in record.prompt] == ["user"] and not is_hh_text(record.prompt[0].content)
    return record.prompt[0].content if alone else None


def _sides(pair: PreferencePair) -> tuple[tuple[str, str], tuple[str, str]]:
    return ("chosen", pair.chosen), ("rejected", pair.rejected)


def _messages(turns: tuple[Message, ...]) -> list[dict[str, str]]:
    return [_message(turn.role, turn.content) for turn in turns]


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _about(record: Feedback) -> dict[str, Any]:
    """The fields beside the texts, those that the record has."""
    found = {name: getattr(record, name) for name in ABOUT}
    return {name: value for name, value in found.items() if value not in (None, {})}
