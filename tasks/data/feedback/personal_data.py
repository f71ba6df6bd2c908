"""Personal data of a row: masked, or a reason to set the row aside, before anything of it is stored.

A value becomes a placeholder of its kind and number, `<EMAIL_1>`; the same value has the same number in all of a row.
Looked at are the texts of prompt and responses, the metadata, time and id, and, of a row that is set aside, the row as
read and the excerpt that says why. Names of annotators, senders, sources and files stay: votes, withdrawals and lineage
go by them. Numbers that JSON holds as numbers stay as well.

A record that went by its content's id goes by that of the masked content: from a digest of the original, anybody could
find a phone number by trying all. File and line lead to the row in the raw store, which keeps it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from plumbline.data_contracts.quarantine_reasons import PERSONAL_DATA
from plumbline.data_contracts.records import Feedback, PreferencePair, Quarantined
from plumbline.tasks.data.feedback.personal_values import Recogniser, require_libraries
from plumbline.tasks.data.feedback.rows import ReadRow
from plumbline.tasks.params.feedback import FeedbackParams

Protect = Callable[[ReadRow], ReadRow]

_NAMES = frozenset({"annotator", "annotators"})  # keys whose values are names of annotators
_ESCAPED = re.compile(r"\\u(?![dD][89a-fA-F])([0-9a-fA-F]{4})")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_CUT_TAIL = re.compile(r"[\d\s().+/-]*\S*…$")
"""The end of a text that was cut, where half a value may stand: its last word, and digits before it."""


def protection(params: FeedbackParams) -> Protect:
    """The handling of personal data that params choose. Raises `UsageError` if its libraries are missing."""
    if params.personal_data == "keep":
        return keep
    require_libraries()
    recogniser = Recogniser(params.personal_data_kinds, params.personal_data_regions)
    return lambda row: protect(row, recogniser, set_aside=params.personal_data == "quarantine")


def keep(row: ReadRow) -> ReadRow:
    """The row as it is."""
    return row


def protect(row: ReadRow, recogniser: Recogniser, *, set_aside: bool) -> ReadRow:
    """The row without personal data; set aside for it, if it would be a record otherwise."""
    masking = _Masking(recogniser)
    outcome = masking.outcome(row.outcome)
    found = Counter(masking.counts)  # those of the record alone: the row as read holds them again
    raw = masking.raw(row.raw)
    if isinstance(outcome, Quarantined):
        whole = not row.raw.endswith("…")
        shown = {name: masking.excerpt(getattr(outcome, name), whole=whole) for name in ("expected", "found")}
        outcome, found = outcome.model_copy(update={"raw": raw, **shown}), Counter(masking.counts)
    elif set_aside and found:
        outcome = _refuse(outcome, raw, found)
    if not masking.numbers:
        return row if raw == row.raw else replace(row, raw=raw, outcome=outcome)
    unknown = tuple(map(masking.text, row.unknown))
    return replace(row, raw=raw, outcome=outcome, unknown=unknown, personal=dict(sorted(found.items())))


@dataclass(slots=True)
class _Masking:
    """The placeholders of one row. `counts`: different values by kind."""

    recogniser: Recogniser
    numbers: dict[tuple[str, str], int] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    known: dict[str, str] = field(default_factory=dict)

    def text(self, text: str) -> str:
        """The text with a placeholder for each value. The row as read holds most texts of the record once more."""
        if text not in self.known:
            self.known[text] = self._masked(text)
        return self.known[text]

    def _masked(self, text: str) -> str:
        parts, end = [], 0
        for value in self.recogniser.find(text):
            parts += [text[end : value.start], self._placeholder(value.kind, value.key)]
            end = value.end
        return "".join([*parts, text[end:]]) if parts else text

    def name(self, name: str) -> str:
        """An id, masked; a long number is a number, though it passes for a card's in a tenth of all cases."""
        return name if name.isdecimal() or _DIGEST.fullmatch(name) else self.text(name)

    def value(self, value: Any) -> Any:
        """A JSON value with every text in it masked, keys too, but for names of annotators."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.text(name): item if name in _NAMES else self.value(item) for name, item in value.items()}
        return [self.value(item) for item in value] if isinstance(value, (list, tuple)) else value

    def outcome(self, outcome: Feedback | Quarantined) -> Feedback | Quarantined:
        """A record with its texts masked; of what is set aside, id and field alone."""
        if isinstance(outcome, Quarantined):
            names = {"record_id": outcome.record_id, "field": outcome.field}
            return outcome.model_copy(update={key: name and self.name(name) for key, name in names.items()})
        texts = ("chosen", "rejected") if isinstance(outcome, PreferencePair) else ("response",)
        turns = tuple(turn.model_copy(update={"content": self.text(turn.content)}) for turn in outcome.prompt)
        update: dict[str, Any] = {name: self.text(getattr(outcome, name)) for name in texts}
        update |= {"prompt": turns, "metadata": self.value(outcome.metadata)}
        update |= {"timestamp": outcome.timestamp and self.text(outcome.timestamp)}
        masked = outcome.model_copy(update=update)
        personal = self.name(outcome.id) != outcome.id
        if not self.numbers:
            return outcome
        by_content = personal or outcome.id == outcome.content_id()
        return masked.model_copy(update={"id": masked.content_id()}) if by_content else masked

    def raw(self, raw: str) -> str:
        """The row as read, masked as the JSON that it is; as text, with its escapes undone, if it is none."""
        try:
            parsed = orjson.loads(raw)
        except orjson.JSONDecodeError:
            plain = _ESCAPED.sub(lambda match: chr(int(match[1], 16)), raw)
            masked = self.excerpt(plain, whole=False)
            return masked if masked != plain else raw
        masked = self.value(parsed)
        return raw if masked == parsed else orjson.dumps(masked).decode()

    def excerpt(self, text: str, *, whole: bool) -> str:
        """A masked excerpt. Its cut end goes too if it may hold half a value; `whole`: the row holds all of them."""
        masked = self.text(text)
        return masked if whole and not self.numbers else _CUT_TAIL.sub("…", masked)

    def _placeholder(self, kind: str, key: str) -> str:
        if (kind, key) not in self.numbers:
            self.counts[kind] += 1
            self.numbers[kind, key] = self.counts[kind]
        return f"<{kind.upper()}_{self.numbers[kind, key]}>"


def _refuse(record: Feedback, raw: str, found: Mapping[str, int]) -> Quarantined:
    return Quarantined(
        reason=PERSONAL_DATA,
        file=record.origin.file,
        line=record.origin.line,
        expected="texts without personal data (feedback.personal_data: quarantine)",
        found=", ".join(f"{kind} {count}" for kind, count in sorted(found.items())),
        record_id=record.id,
        raw=raw,
        senders=record.origin.senders,
    )
