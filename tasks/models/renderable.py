"""Which records a chat template renders, and which spell control tokens: found before a stage works, for all alike.

A template may refuse a conversation: a system turn, roles that do not alternate, a content that it does not take. Such
a record is set aside whole, and counted with its id and the template's reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from plumbline.data_contracts.errors import ModelError
from plumbline.data_contracts.records import CuratedPair, Message, PreferencePair, UnpairedResponse
from plumbline.tasks.models.chat import answered, refused_by_template
from plumbline.tasks.models.control_tokens import control_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REFUSED = "refused_by_template"
SPELLED = "control_tokens"
_SHOWN = 50
_NAMED = 3


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation to imitate, and how messages call it."""

    id: str
    messages: Sequence[Message]


AnyRecord = CuratedPair | PreferencePair | UnpairedResponse | Conversation
Rendered = TypeVar("Rendered", bound=AnyRecord)
Talks = list[Sequence[Message]]


def sift(tokenizer: PreTrainedTokenizerBase, records: Sequence[Rendered]) -> tuple[list[Rendered], dict[str, str]]:
    """The records that the template renders, in order, and of the others the id and the template's reason."""
    talks = [_talks(record) for record in records]
    reasons: dict[int, str] = {}
    for part, prompt in ((0, True), (1, False)):
        rows = [row for row, each in enumerate(talks) for _ in each[part]]
        flat = [talk for each in talks for talk in each[part]]
        for place, reason in refused_by_template(tokenizer, flat, prompt=prompt).items():
            reasons.setdefault(rows[place], reason)
    kept = [record for row, record in enumerate(records) if row not in reasons]
    return kept, {records[row].id: reasons[row] for row in sorted(reasons)}


def sift_splits(
    tokenizer: PreTrainedTokenizerBase, splits: Mapping[str, Sequence[Any]], threshold: float
) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """`sift` for each split, and facts: `refused_by_template`, and `control_tokens` that the others spell.

    Raises `ModelError` if the share of refused records of all splits together exceeds `threshold`, or none is left.
    """
    sifted = {name: sift(tokenizer, records) for name, records in splits.items()}
    kept = {name: found for name, (found, _) in sifted.items()}
    refused = [
        {"split": name, "id": number, "reason": reason}
        for name, (_, reasons) in sifted.items()
        for number, reason in reasons.items()
    ]
    _refuse_too_many(refused, sum(map(len, splits.values())), threshold)
    counts: dict[str, Any] = {name: len(reasons) for name, (_, reasons) in sifted.items()}
    reasons = dict(sorted(Counter(row["reason"] for row in refused).items()))
    facts = {
        REFUSED: counts | {"reasons": reasons, "rows": refused[:_SHOWN]},
        SPELLED: spelled(tokenizer, [record for records in kept.values() for record in records]),
    }
    return kept, facts


def spelled(tokenizer: PreTrainedTokenizerBase, records: Sequence[AnyRecord]) -> dict[str, Any]:
    """The number of records that spell control tokens, and the number for each token, which is read as text."""
    control = control_tokens(tokenizer)
    tokens: Counter[str] = Counter()
    rows = 0
    for record in records:
        found = control.named(_contents(record))
        tokens.update(found)
        rows += bool(found)
    return {"rows": rows, "tokens": dict(sorted(tokens.items()))}


def _talks(record: AnyRecord) -> tuple[Talks, Talks]:
    """The conversations of a record that stages render: prompts that are answered, and whole conversations."""
    if isinstance(record, Conversation):
        places = [place for place, each in enumerate(record.messages) if each.role == "assistant" and place > 0]
        return [record.messages[:place] for place in places], [record.messages[: place + 1] for place in places]
    responses = _responses(record)
    return [record.prompt], list(answered([record.prompt] * len(responses), responses))


def _responses(record: CuratedPair | PreferencePair | UnpairedResponse) -> list[str]:
    return [record.response] if isinstance(record, UnpairedResponse) else [record.chosen, record.rejected]


def _contents(record: AnyRecord) -> list[str]:
    if isinstance(record, Conversation):
        return [message.content for message in record.messages]
    return [*(message.content for message in record.prompt), *_responses(record)]


def _refuse_too_many(refused: Sequence[Mapping[str, str]], given: int, threshold: float) -> None:
    if not refused or (len(refused) <= threshold * given and len(refused) < given):
        return
    some = "; ".join(f"{row['split']} {row['id']}: {row['reason']}" for row in refused[:_NAMED])
    raise ModelError(
        f"The chat template refuses {len(refused)} of {given} records ({len(refused) / given:.1%}), more than "
        f"reference.refused_threshold ({threshold:g}) allows, such as {some}. Use a chat template that takes them, "
        "leave such records out of the feedback, or raise reference.refused_threshold, by which they are set aside."
    )
