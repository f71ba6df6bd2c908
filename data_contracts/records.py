"""The records that stages hand over: one type per kind of feedback, one for what was set aside.

A record keeps its id from ingestion to audit: the id that the source gave, or the SHA-256 of
the canonical content. An id that another file gave to other content names neither for sure: the later record goes by
its content, and `given_id` keeps what the source said. `origin` names the raw file and line, so that lineage ends at a
line.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

Role = Literal["system", "user", "assistant", "tool"]


class Record(BaseModel):
    """Base of every record: immutable, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


AnyRecord = TypeVar("AnyRecord", bound=Record)


class Message(Record):
    """One turn of a conversation."""

    role: Role
    content: str


class Origin(Record):
    """The place at which a record was read: raw file name (digest or path inside the workspace) and 1-based line.

    `senders` are the names of the tokens under which the row came over HTTP; nothing for files that a person ingested.
    """

    file: str
    line: int = Field(ge=1)
    senders: tuple[str, ...] = ()

    @model_serializer(mode="wrap")
    def _leave_out_nobody(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_nobody(dump(self))


class FeedbackRecord(Record):
    """The fields of feedback of every kind: its prompt, its author, its time, and its place in a raw file."""

    id: str = Field(description="given by the source, else the SHA-256 of the content")
    prompt: tuple[Message, ...] = Field(description="the turns, in order; the last is the user's, or a tool's result")
    source: str = Field(description="the kind of feedback, or the name that the row gives")
    annotator: str | None = Field(default=None, description="who judged: one vote on a preference")
    timestamp: str | None = Field(default=None, description="ISO 8601, as given")
    metadata: dict[str, Any] = Field(default_factory=dict, description="anything else, kept as it is")
    origin: Origin = Field(description="raw file, line and tokens of the senders")
    given_id: str | None = Field(default=None, description="the source's id, if another file gave it to other content")

    def prompt_text(self) -> str:
        """The prompt as one string, a line per turn: for hashing, similarity and reports, not for models."""
        return "\n".join(f"{message.role}: {message.content}" for message in self.prompt)


class PreferencePair(FeedbackRecord):
    """Contract `preference_pair` v1: one prompt, the response people preferred and the one they did not."""

    chosen: str = Field(description="the response that was preferred")
    rejected: str = Field(description="the response that was not")

    def content_id(self) -> str:
        """SHA-256 (hex) of what the pair says, whoever said it and when."""
        return content_id(self.prompt, self.chosen, self.rejected)


class CuratedPair(PreferencePair):
    """A preference pair after curation: its near-duplicate cluster, and what curation changed in it."""

    cluster: str = Field(description="near-duplicate prompts share one; a cluster lies in one split")
    cleaned: tuple[str, ...] = Field(default=(), description="fields out of which a leaked label was cut")


class UnpairedResponse(FeedbackRecord):
    """Contract `unpaired_response` v1: one response that people liked or did not, with no other to compare it with."""

    response: str = Field(description="the response that was judged")
    desirable: bool = Field(description="thumb up or down")

    def content_id(self) -> str:
        """SHA-256 (hex) of what the record says, whoever said it and when."""
        turns = [[message.role, message.content] for message in self.prompt]
        return hashlib.sha256(orjson.dumps([turns, self.response, self.desirable])).hexdigest()


Feedback = PreferencePair | UnpairedResponse
"""A record of any kind of feedback."""


class Quarantined(Record):
    """A row that was set aside: why, where, which field, and the row itself as read."""

    reason: str = Field(description="one of the reasons of quarantine")
    file: str = Field(description="raw file")
    line: int = Field(description="1-based")
    field: str | None = Field(default=None, description="the field to blame")
    expected: str
    found: str
    record_id: str | None = None
    raw: str = Field(description="the row as read")
    senders: tuple[str, ...] = Field(default=(), description="names of the tokens under which it came")

    @model_serializer(mode="wrap")
    def _leave_out_nobody(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_nobody(dump(self))


class Merged(Record):
    """A row that was folded into another: an exact or verified near duplicate, and `why` it is taken for one."""

    record_id: str
    into: str = Field(description="id of the record that stays")
    reason: str = Field(description="exact or near duplicate")
    why: str | None = Field(default=None, description="the evidence")
    origin: Origin = Field(description="raw file, line and tokens of the senders")


def _without_nobody(dumped: dict[str, Any]) -> dict[str, Any]:
    """Without `senders` if there are none: most files come from no token, and stay as they were."""
    if not dumped.get("senders", True):
        del dumped["senders"]
    return dumped


def content_id(prompt: Iterable[Message], chosen: str, rejected: str) -> str:
    """SHA-256 (hex) of the canonical JSON of prompt, chosen and rejected."""
    return content_id_of([{"role": message.role, "content": message.content} for message in prompt], chosen, rejected)


def content_id_of(turns: Iterable[Mapping[str, str]], chosen: str, rejected: str) -> str:
    """The same of turns as JSON objects with role and content."""
    said = [[turn["role"], turn["content"]] for turn in turns]
    return hashlib.sha256(orjson.dumps([said, chosen, rejected])).hexdigest()


def dump_jsonl(path: Path, records: Iterable[BaseModel]) -> int:
    """Write records as canonical JSON lines (sorted keys, UTF-8) and return how many."""
    count = 0
    with path.open("wb") as file:
        for record in records:
            file.write(orjson.dumps(record.model_dump(mode="json"), option=orjson.OPT_SORT_KEYS) + b"\n")
            count += 1
    return count


def load_jsonl(path: Path, kind: type[AnyRecord]) -> Iterator[AnyRecord]:
    """Read records that an earlier stage wrote with `dump_jsonl`."""
    with path.open("rb") as file:
        for line in file:
            yield kind.model_validate_json(line)


def load_conversations(path: Path) -> list[list[Message]]:
    """Read conversations, a JSON object with a `messages` list per line."""
    with path.open("rb") as file:
        return [[Message(**turn) for turn in orjson.loads(line)["messages"]] for line in file]
