"""Contract `interaction` v2: what was answered to a user, by which version, and what the user did next.

An interaction is one request. Its first answer is the one that the user saw; a mirrored request has a
second, of the version in shadow, that nobody saw. Feedback arrives later and names the request by its id.
Of the user a pseudonym is kept, so that one with many requests counts once; v1 had none, and reads as v2 without one.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import AwareDatetime, Field

from plumbline.data_contracts.records import Message, Record

CONTRACT = "interaction"
VERSION = 2

Side = Literal["champion", "challenger"]
FeedbackKind = Literal["click", "thumb_up", "thumb_down", "deflected", "escalated"]


class ServedCompletion(Record):
    """One version's answer to one request."""

    side: Side
    model_uri: str = Field(description="models:/NAME/VERSION, never an alias")
    text: str
    tokens: int = Field(ge=0, description="tokens generated")
    latency_ms: float = Field(ge=0, description="from request to last token, in the serving process")
    first_token_ms: float | None = Field(default=None, ge=0)
    finish_reason: Literal["stop", "length", "error"]
    refusal: bool = Field(description="the answer declines to help")
    violation: bool = Field(description="a safety rule names the answer; a wrongly helpful answer included")
    error: str | None = None


class Interaction(Record):
    """One request and its answers: `answers[0]` is what the user saw."""

    id: str = Field(min_length=1, max_length=200, description="request id, unique")
    received_at: AwareDatetime
    prompt: tuple[Message, ...]
    canary: bool = Field(description="the challenger answered the user")
    answers: tuple[ServedCompletion, ...] = Field(min_length=1, max_length=2)
    user: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{32}$",
        description="pseudonym (keyed hash) of the user that the request named, never the name itself",
    )

    @property
    def voter(self) -> str:
        """The one who counts once: the user, or the request itself if it named no user."""
        return self.id if self.user is None else f"user {self.user}"


class InteractionFeedback(Record):
    """A user's reaction to an answer. The same (request_id, kind, annotator) counts once."""

    request_id: str = Field(min_length=1, max_length=200)
    kind: FeedbackKind
    at: datetime
    annotator: str | None = None
