"""Bounds on what a client may send: how often, how much, how slowly."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from plumbline.tasks.operations.intake.bodies import BodyRefusal

_DRAIN_BYTES = 1 << 20  # of a refused body read off, so that the client gets to read the answer
_DRAIN_S = 1.0


@dataclass(slots=True)
class Rate:
    """A token bucket per client: `per_s` requests per second, over a burst of twice as many."""

    per_s: float
    clock: Callable[[], float] = time.monotonic
    _left: dict[str, tuple[float, float]] = field(default_factory=dict)

    def wait_s(self, client: str) -> float:
        """Take one request off the bucket; seconds to wait where it is empty, else 0."""
        now, burst = self.clock(), 2 * self.per_s
        left, since = self._left.get(client, (burst, now))
        left = min(burst, left + (now - since) * self.per_s)
        if left < 1:
            self._left[client] = (left, now)
            return (1 - left) / self.per_s
        self._left[client] = (left - 1, now)
        return 0.0


@dataclass(slots=True)
class Memory:
    """Bytes that all requests together may hold."""

    limit: int
    held: int = 0

    @contextmanager
    def share(self) -> Iterator[Callable[[int], None]]:
        """A function that takes bytes off what is left, given back at the end. It raises `BodyRefusal` (429)."""
        mine = 0

        def take(count: int) -> None:
            nonlocal mine
            if self.held + count > self.limit:
                raise busy(1.0, "too much is being sent at a time")
            mine += count
            self.held += count

        try:
            yield take
        finally:
            self.held -= mine


async def read_body(
    chunks: AsyncIterator[bytes], declared: str | None, limit: int, timeout_s: float, take: Callable[[int], None]
) -> bytes:
    """The whole body. Raises `BodyRefusal`: 413 over the limit, as declared or as it comes; 408 when too slow.

    `take` receives all bytes that are held.
    """
    if declared is not None and declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in chunks:
                take(len(chunk))
                body += chunk
                if len(body) > limit:
                    raise _too_large(limit)
    except TimeoutError:
        raise BodyRefusal(408, "too_slow", f"the body did not come in whole within {timeout_s:g} s.") from None
    return bytes(body)


async def drain(chunks: AsyncIterator[bytes]) -> None:
    """Read off a bounded part of a body that was refused."""
    seen = 0
    try:
        async with asyncio.timeout(_DRAIN_S):
            async for chunk in chunks:
                seen += len(chunk)
                if seen > _DRAIN_BYTES:
                    return
    except TimeoutError:
        return


def busy(wait_s: float, why: str) -> BodyRefusal:
    """A 429 that says when to come again."""
    after = {"Retry-After": str(max(1, math.ceil(wait_s)))}
    return BodyRefusal(429, "too_many_requests", f"{why}. Send it again after a while.", headers=after)


def _too_large(limit: int) -> BodyRefusal:
    return BodyRefusal(413, "too_large", f"the body is larger than {limit} bytes. Send the rows in parts.")
