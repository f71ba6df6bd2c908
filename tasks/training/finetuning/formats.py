"""Prompt-format randomisation: system prompts and templates drawn for each training record, whatever the method.

What a record gets hangs on the seed and its own id alone, so that it stays when other records come or go. System
prompts go only to prompts without one, because a record's own may hold what its answer needs; templates go around
the last user message, which is the one that is answered. Responses are never touched.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeVar

from plumbline.data_contracts.records import CuratedPair, Message, UnpairedResponse
from plumbline.tasks.params.method_sections import FormatParams
from plumbline.tasks.training.finetuning.methods import FinetuneInputs

Prompted = TypeVar("Prompted", CuratedPair, UnpairedResponse)
Prompt = tuple[Message, ...]


def apply_formats(inputs: FinetuneInputs, params: FormatParams) -> tuple[FinetuneInputs, dict[str, Any]]:
    """The inputs with formatted records and the temperatures, and facts: how often each format was drawn.

    Validation pairs are formatted only if params say so. If nothing is drawn, inputs are as given.
    """
    if not params.on:
        return inputs, {}
    train, of_train = randomise(inputs.train, params, inputs.seed)
    unpaired, of_unpaired = randomise(inputs.unpaired, params, inputs.seed)
    facts: dict[str, Any] = {"train": of_train, "unpaired": of_unpaired, "temperatures": list(params.temperatures)}
    changed = dataclasses.replace(
        inputs, train=train, unpaired=unpaired, temperatures=params.temperatures or inputs.temperatures
    )
    if params.validation:
        validation, facts["validation"] = randomise(inputs.validation, params, inputs.seed)
        changed = dataclasses.replace(changed, validation=validation)
    return changed, facts


def randomise(
    records: Sequence[Prompted], params: FormatParams, seed: int
) -> tuple[list[Prompted], dict[str, list[int] | int]]:
    """Records with formatted prompts, and how often each system prompt and template was drawn, in the order of params.

    Counted beside them are prompts that take none: `own_system_prompt`, and `no_user_message` for a template.
    """
    counts: Counter[tuple[str, int]] = Counter()
    formatted = [
        record.model_copy(update={"prompt": _format(record.prompt, record.id, params, seed, counts)})
        for record in records
    ]
    return formatted, {
        "system_prompts": [counts["system_prompt", index] for index in range(len(params.system_prompts))],
        "templates": [counts["template", index] for index in range(len(params.templates))],
        "own_system_prompt": counts["own_system_prompt", 0],
        "no_user_message": counts["no_user_message", 0],
    }


def _format(
    prompt: Prompt, record_id: str, params: FormatParams, seed: int, counts: Counter[tuple[str, int]]
) -> Prompt:
    if params.templates:
        prompt = _with_template(prompt, record_id, params.templates, seed, counts)
    if params.system_prompts:
        prompt = _with_system_prompt(prompt, record_id, params.system_prompts, seed, counts)
    return prompt


def _with_template(
    prompt: Prompt, record_id: str, templates: Sequence[str], seed: int, counts: Counter[tuple[str, int]]
) -> Prompt:
    places = [place for place, message in enumerate(prompt) if message.role == "user"]
    if not places:
        counts["no_user_message", 0] += 1
        return prompt
    index = _draw("template", record_id, len(templates), seed)
    counts["template", index] += 1
    content = templates[index].format(prompt=prompt[places[-1]].content)
    message = Message(role="user", content=content)
    return (*prompt[: places[-1]], message, *prompt[places[-1] + 1 :])


def _with_system_prompt(
    prompt: Prompt, record_id: str, system_prompts: Sequence[str], seed: int, counts: Counter[tuple[str, int]]
) -> Prompt:
    if any(message.role == "system" for message in prompt):
        counts["own_system_prompt", 0] += 1
        return prompt
    index = _draw("system_prompt", record_id, len(system_prompts), seed)
    counts["system_prompt", index] += 1
    text = system_prompts[index]
    return (Message(role="system", content=text), *prompt) if text else prompt


def _draw(kind: str, record_id: str, options: int, seed: int) -> int:
    """A number below `options`, uniform over ids; kinds are drawn apart."""
    digest = hashlib.sha256(f"{seed}\0{kind}\0{record_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % options
