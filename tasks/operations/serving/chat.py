"""Chat requests and the backends that answer them: the vocabulary of serving."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from plumbline.data_contracts.records import Message

Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One request to answer. None leaves a setting to the checkpoint, and then to params."""

    messages: tuple[Message, ...]
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    user: str | None = None
    model: str | None = None
    stream: bool = False
    include_usage: bool = False


@dataclass(frozen=True, slots=True)
class Piece:
    """A further bit of an answer. The last one says why the answer ended, and counts tokens."""

    text: str
    finish: Finish | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


class BackendError(Exception):
    """A backend cannot answer this request; `status` is the HTTP status that says whose fault it is."""

    def __init__(self, message: str, *, status: int = 502, code: str = "backend_error") -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class Backend(Protocol):
    """Answers requests, in at most `lanes` threads at one time."""

    @property
    def lanes(self) -> int:
        """The number of answers that it can work on at one time; more wait their turn."""
        ...

    def pieces(self, request: ChatRequest, cancelled: threading.Event) -> Iterator[Piece]:
        """The answer, bit by bit, the last with a `finish`; nothing more once `cancelled` is set.

        Raises `BackendError`.
        """
        ...

    def alive(self) -> bool:
        """True if it can go on answering; one that cannot is loaded anew."""
        ...

    def close(self) -> None:
        """Let go of memory, processes and connections. No answer is under way."""
        ...
