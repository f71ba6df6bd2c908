"""Step 2: responses that are too short or too long, prompts that are too long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from plumbline.data_contracts.records import Feedback, PreferencePair, Quarantined, UnpairedResponse
from plumbline.tasks.data.curation.pair_source import Texts
from plumbline.tasks.data.curation.verdicts import CurationOutcome, Item, quarantine
from plumbline.tasks.params.curation import LengthLimitParams


def apply_limits(items: Sequence[Item], params: LengthLimitParams) -> CurationOutcome:
    """Set aside pairs beyond the limits: `too_short`, `over_long`, `prompt_over_long`."""
    outcome = CurationOutcome([])
    for item in items:
        verdict = check_pair(item.pair, params)
        if verdict is None:
            outcome.kept.append(item)
        else:
            outcome.quarantined.append(verdict)
    return outcome


def length(text: str, unit: str) -> int:
    """Length of a text without its outer white space, in `characters` or `words`."""
    return len(text.split()) if unit == "words" else len(text.strip())


def check_response(record: UnpairedResponse, params: LengthLimitParams) -> Quarantined | None:
    """The verdict on a single response beyond the limits; None if it keeps to them."""
    return _check_texts(record, {"response": record.response}, params)


def sizes_of(texts: Texts, unit: str) -> tuple[int, int, int]:
    """Lengths of prompt, chosen and rejected."""
    turns, chosen, rejected = texts
    return sum(length(said, unit) for _, said in turns), length(chosen, unit), length(rejected, unit)


def within(sizes: tuple[int, int, int], params: LengthLimitParams) -> bool:
    """True if lengths of prompt, chosen and rejected keep to the limits."""
    prompt, *responses = sizes
    return prompt <= params.max_prompt and all(params.min_response <= size <= params.max_response for size in responses)


def check_pair(pair: PreferencePair, params: LengthLimitParams) -> Quarantined | None:
    """The verdict on a pair beyond the limits; None if it keeps to them."""
    return _check_texts(pair, {"chosen": pair.chosen, "rejected": pair.rejected}, params)


def _check_texts(record: Feedback, responses: Mapping[str, str], params: LengthLimitParams) -> Quarantined | None:
    size = sum(length(message.content, params.unit) for message in record.prompt)
    if size > params.max_prompt:
        expected = f"at most {params.max_prompt} {params.unit} (limits.max_prompt)"
        return quarantine(record, "prompt_over_long", field="prompt", expected=expected, found=f"{size} {params.unit}")
    for name, text in responses.items():
        size = length(text, params.unit)
        if params.min_response <= size <= params.max_response:
            continue
        reason, bound = ("too_short", "min_response") if size < params.min_response else ("over_long", "max_response")
        expected = f"{params.min_response} to {params.max_response} {params.unit} (limits.{bound})"
        return quarantine(record, reason, field=name, expected=expected, found=f"{size} {params.unit}")
    return None
