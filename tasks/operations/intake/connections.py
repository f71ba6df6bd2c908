"""Connections within bounds: how many there are, and how long one may be held without a request under way.

uvicorn itself waits for ever for the first request of a connection and for the rest of a head, and for a client that
does not read its answer. What a request may take once its head is there, is bounded where the body is read.
"""

from __future__ import annotations

import asyncio
from typing import ClassVar

from plumbline.data_contracts.private_names import private_names, require_names

with private_names("uvicorn"):
    from uvicorn.protocols.http.h11_impl import H11Protocol

require_names("uvicorn", H11Protocol, "connection_made", "connection_lost", "on_response_complete", "pause_writing")

_LOOKS = 4  # at a connection in the time that it may be idle
_SPARED_S = 1.0  # just idle: its next request may be under way already


def bounded(most: int, idle_s: float) -> type[H11Protocol]:
    """The protocol of a server that holds `most` connections, each idle for `idle_s` at most."""
    return type("Bounded", (BoundedConnection,), {"most": most, "idle_s": idle_s, "_idle_ones": {}})


class BoundedConnection(H11Protocol):
    """One connection. It is idle while no request of it is worked on, and while its client reads no answer."""

    most: ClassVar[int] = 512
    idle_s: ClassVar[float] = 10.0

    _idle_ones: ClassVar[dict[BoundedConnection, None]] = {}  # longest idle first; some meanwhile at work
    _idle_since = 0.0
    _look: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection; for one too many, the longest idle goes, or this one if none is idle."""
        super().connection_made(transport)
        if len(self.connections) > self.most:
            self._make_room()
        self._now_idle()
        self._look_later()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is over."""
        if self._look is not None:
            self._look.cancel()
        self._idle_ones.pop(self, None)
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """From now on it is idle."""
        self._now_idle()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """The client does not read what it is sent."""
        self._now_idle()
        super().pause_writing()

    def _now_idle(self) -> None:
        self._idle_since = self.loop.time()
        self._idle_ones.pop(self, None)
        self._idle_ones[self] = None

    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete or self.flow.write_paused

    def _look_later(self) -> None:
        self._look = self.loop.call_later(self.idle_s / _LOOKS, self._end_if_idle)

    def _end_if_idle(self) -> None:
        if self._idle() and self.loop.time() - self._idle_since >= self.idle_s:
            self.transport.abort()  # to close, it would wait until what is written is read
        else:
            self._look_later()

    def _make_room(self) -> None:
        going: BoundedConnection = self
        while (longest := next(iter(self._idle_ones), None)) is not None:
            if longest._idle():
                if self.loop.time() - longest._idle_since >= _SPARED_S:
                    going = longest
                break
            del self._idle_ones[longest]  # it is at work, and comes back at its end
        self._idle_ones.pop(going, None)
        self.connections.discard(going)  # now: the transport reports its end a little later
        going.transport.abort()
