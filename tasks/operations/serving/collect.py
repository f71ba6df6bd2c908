"""An answer while it comes in: its text, its clocks, and how it ended."""

from __future__ import annotations

import time

from plumbline.data_contracts.interactions import ServedCompletion, Side
from plumbline.tasks.operations.serving.chat import Finish, Piece
from plumbline.tasks.operations.serving.signals import Signals

LEFT = "the client left"
"""Error of an answer that its reader broke off: no fault of the version, unless it was slow by then."""


class Collected:
    """Pieces of one answer and when they came. Times are from when this was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._texts: list[str] = []
        self._ended: float | None = None
        self.first_token_ms: float | None = None
        self.finish: Finish | None = None
        self.prompt_tokens = 0
        self.tokens = 0
        self.error: str | None = None

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._texts)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the request began."""
        return self._elapsed_ms() / 1000

    def add(self, piece: Piece) -> None:
        """Take a further piece."""
        if piece.text:
            if self.first_token_ms is None:
                self.first_token_ms = self._elapsed_ms()
            self._texts.append(piece.text)
        if piece.finish is not None:
            self.finish = piece.finish
            self.prompt_tokens, self.tokens = piece.prompt_tokens, piece.completion_tokens
            self._ended = self._elapsed_ms()

    def fail(self, why: str) -> None:
        """It will not be complete. Tokens that came are counted by their pieces."""
        self.error = why
        self.tokens = len(self._texts)
        self._ended = self._elapsed_ms()

    def answer(self, side: Side, model_uri: str, signals: Signals) -> ServedCompletion:
        """As it is logged."""
        whole = self.finish is not None and self.error is None
        return ServedCompletion(
            side=side,
            model_uri=model_uri,
            text=self.text,
            tokens=self.tokens,
            latency_ms=self._elapsed_ms() if self._ended is None else self._ended,
            first_token_ms=self.first_token_ms,
            finish_reason=self.finish if whole and self.finish is not None else "error",
            refusal=signals.refusal,
            violation=signals.violation,
            error=None if whole else (self.error or "it broke off"),
        )

    def _elapsed_ms(self) -> float:
        return 1000 * (time.perf_counter() - self._start)
