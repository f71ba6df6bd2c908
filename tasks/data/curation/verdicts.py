"""Verdicts of curation: what happens to a pair, always with a named reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from plumbline.data_contracts.records import Feedback, Merged, PreferencePair, Quarantined

_SHOWN = 160
_OLDEST = datetime.min.replace(tzinfo=UTC)


@dataclass(slots=True)
class Item:
    """A pair on its way through curation, with what it stands for once duplicates are folded into it.

    `place` is its index in the input, `cleaned` what was cut from it, `voters` those who stand behind it, `latest` the
    newest time among them.
    """

    pair: PreferencePair
    place: int
    cleaned: tuple[str, ...] = ()
    voters: set[str] = field(default_factory=set)
    latest: datetime = _OLDEST

    @classmethod
    def of(cls, pair: PreferencePair, place: int) -> Item:
        """The item of one input pair."""
        return cls(pair, place, voters=voters_of(pair), latest=parse_time(pair.timestamp))

    @property
    def votes(self) -> int:
        """The number of voters for this preference; nobody counts twice."""
        return len(self.voters)

    def absorb(self, other: Item) -> None:
        """Take over the votes of a duplicate."""
        self.voters |= other.voters
        self.latest = max(self.latest, other.latest)


@dataclass(slots=True)
class CurationOutcome:
    """The decision of one step: the items that go on, and those that do not."""

    kept: list[Item]
    merged: list[Merged] = field(default_factory=list)
    quarantined: list[Quarantined] = field(default_factory=list)

    def __bool__(self) -> bool:
        """True if the step decided against any pair."""
        return bool(self.merged or self.quarantined)


def voters_of(record: Feedback) -> set[str]:
    """The voters of a record: its annotator; without one, the sender; else the file that it came in.

    One sender, or one file, can hold any number of rows without a name, and has one vote on each preference.
    """
    if record.annotator is not None:
        return {f"annotator {record.annotator}"}
    return {f"token {sender}" for sender in record.origin.senders} or {f"file {record.origin.file}"}


def parse_time(timestamp: str | None) -> datetime:
    """An ISO 8601 time, in UTC where it names no zone; the oldest possible if there is none or it is unreadable."""
    if timestamp is None:
        return _OLDEST
    try:
        parsed = datetime.fromisoformat(timestamp)
    except ValueError:
        return _OLDEST
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def quarantine(record: Feedback, reason: str, *, field: str | None, expected: str, found: str) -> Quarantined:
    """Set a record aside, whole, with the reason."""
    return Quarantined(
        reason=reason,
        file=record.origin.file,
        line=record.origin.line,
        field=field,
        expected=expected,
        found=shorten(found),
        record_id=record.id,
        raw=record.model_dump_json(),
        senders=record.origin.senders,
    )


def merge(item: Item, into: Item, reason: str, why: str | None = None) -> Merged:
    """Fold a pair into another, which takes over its votes; `why` says what proved it, where they are not equal."""
    into.absorb(item)
    return Merged(record_id=item.pair.id, into=into.pair.id, reason=reason, why=why, origin=item.pair.origin)


def shorten(text: str) -> str:
    """At most 160 characters of a text, for a message."""
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def examples(names: Sequence[str], most: int = 3) -> str:
    """A bounded list of names for a message."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
