"""The serving process without its HTTP: who answers a request, and what is kept of it.

1. A request begins on the challenger where the canary says so, else on the champion, and stays there to its end.
2. Pieces come from the backend's own thread through a queue, so that a slow reader holds up nobody else.
3. Once it has ended, a thread of its own looks at the answer (refusal, violation), hands it to the log, and offers it
   to the mirror.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from plumbline.data_contracts.interactions import Interaction, InteractionFeedback, Side
from plumbline.tasks.operations.serving.canary import Canary
from plumbline.tasks.operations.serving.chat import BackendError, ChatRequest, Piece
from plumbline.tasks.operations.serving.collect import LEFT, Collected
from plumbline.tasks.operations.serving.log_writer import LogWriter
from plumbline.tasks.operations.serving.shadow import Mirror
from plumbline.tasks.operations.serving.signals import Detector, Signals
from plumbline.tasks.operations.serving.slots import Served, Slot, Watcher
from plumbline.tasks.params.serving import ServingParams

Clock = Callable[[], datetime]
AddFeedback = Callable[[InteractionFeedback], bool]
Pseudonym = Callable[[str], str]


@dataclass(slots=True)
class Exchange:
    """One request being answered."""

    id: str
    received_at: datetime
    request: ChatRequest
    served: Served
    side: Side
    canary: bool
    collected: Collected = field(default_factory=Collected)


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a service. `shadow` (the slot of mirrored answers) and `canary` are None if switched off.

    Without `pseudonym` no user is logged.
    """

    champion: Slot
    writer: LogWriter
    feedback: AddFeedback
    detect: Detector
    clock: Clock
    shadow: Slot | None = None
    canary: Canary | None = None
    watcher: Watcher | None = None
    pseudonym: Pseudonym | None = None
    slots: Sequence[Slot] = ()


class ChatService:
    """Answers requests and keeps account of them."""

    def __init__(self, parts: Parts, params: ServingParams) -> None:
        self.parts = parts
        self.params = params
        self.in_flight = 0
        self.draining = False
        self.lost = 0
        self._after = ThreadPoolExecutor(1, thread_name_prefix="after the answer")
        self._trouble: str | None = None
        shadow = params.shadow
        self.mirror = Mirror(parts.shadow, shadow.share, shadow.queue, self._mirrored) if parts.shadow else None

    def begin(self, request_id: str, request: ChatRequest) -> Exchange:
        """Choose who answers. Raises `BackendError` (503) if nobody can. The exchange must be run to its end."""
        parts = self.parts
        chosen = parts.canary.choose(request) if parts.canary else None
        served = chosen or parts.champion.begin()
        if served is None:
            raise BackendError("no version is loaded yet.", status=503, code="not_ready")
        side: Side = "challenger" if chosen else "champion"
        return Exchange(request_id, parts.clock(), request, served, side, chosen is not None)

    async def pieces(self, exchange: Exchange) -> AsyncGenerator[Piece]:
        """The answer; when this ends, however it ends, the work on it ends and the exchange is logged."""
        collected = exchange.collected
        collected.error = LEFT
        try:
            async with aclosing(_bridge(exchange.served, exchange.request)) as incoming:
                async for piece in incoming:
                    collected.add(piece)
                    if piece.finish is not None:
                        collected.error = None
                    yield piece
        except BackendError as error:
            collected.fail(str(error))
            raise
        except asyncio.CancelledError:  # while the backend was waited for: it, not the reader, may have been too slow
            if collected.elapsed_s >= self.params.limits.answer_s:
                collected.fail(f"the answer took more than {self.params.limits.answer_s:g} s")
            raise
        finally:
            if collected.error == LEFT:
                collected.fail(LEFT)
            self._after.submit(self._keep, exchange)

    def add_feedback(self, feedback: InteractionFeedback) -> bool:
        """Keep feedback; the answer that it is about may still be on its way into the log. False: unknown request."""
        if self.parts.feedback(feedback):
            return True
        self._after.submit(int).result()
        self.parts.writer.flush(self.params.limits.body_s)
        return self.parts.feedback(feedback)

    def _mirrored(self, interaction: Interaction, collected: Collected, served: Served) -> None:
        """Log the second answer of a mirrored request."""
        answer = collected.answer("challenger", served.uri, self._signals(interaction.prompt, collected))
        self.parts.writer.put(interaction.model_copy(update={"answers": (interaction.answers[0], answer)}))

    def health(self) -> dict[str, Any]:
        """The body of /healthz; `shadow` and `canary` are None if switched off."""
        parts, mirror = self.parts, self.mirror
        alerts = [slot.alert for slot in (parts.champion, *parts.slots) if slot.alert]
        alerts += parts.watcher.alerts() if parts.watcher else []
        troubles = (parts.writer.trouble, parts.writer.refused, self._trouble, mirror and mirror.trouble)
        alerts += [text for text in troubles if text]
        if parts.canary and parts.canary.returned:
            alerts.append(f"canary: {parts.canary.returned} `plumbline canary retry --reason WHY` lets it try again.")
        status = "draining" if self.draining else "starting" if parts.champion.uri is None else "ok"
        return {
            "status": "alert" if status == "ok" and alerts else status,
            "alerts": alerts,
            "champion": parts.champion.uri,
            "versions": {slot.role: slot.uri for slot in parts.slots},
            "in_flight": self.in_flight,
            "log": {
                "waiting": parts.writer.waiting,
                "dropped": parts.writer.dropped,
                "lost": self.lost,
                "set_aside": parts.writer.set_aside,
                "id_clashes": parts.writer.clashes,
            },
            "shadow": None
            if mirror is None or parts.shadow is None
            else {
                "state": parts.shadow.state,
                "answered": mirror.answered,
                "waiting": mirror.waiting,
                "dropped": mirror.dropped,
                "failed": mirror.failed,
            },
            "canary": parts.canary.state() if parts.canary else None,
        }

    def start(self) -> None:
        """Begin to follow the aliases."""
        if self.parts.watcher:
            self.parts.watcher.start()

    def close(self) -> None:
        """End in order: no more mirroring, every answer written, every version closed."""
        self.draining = True
        if self.parts.watcher:
            self.parts.watcher.stop()
        if self.mirror:
            self.mirror.close()
        self._after.shutdown(wait=True)
        self.parts.writer.close(self.params.limits.shutdown_s)
        for slot in (self.parts.champion, *self.parts.slots):
            slot.clear()

    def _keep(self, exchange: Exchange) -> None:
        try:
            self._log(exchange)
        except Exception as error:  # this thread's futures are not read: what is not logged here is logged nowhere
            self.lost += 1
            self._trouble = f"{exchange.id} was not logged: {type(error).__name__}: {error}"

    def _log(self, exchange: Exchange) -> None:
        collected = exchange.collected
        signals = self._signals(exchange.request.messages, collected)
        user, pseudonym = exchange.request.user, self.parts.pseudonym
        interaction = Interaction(
            id=exchange.id,
            user=pseudonym(user) if user and pseudonym else None,
            received_at=exchange.received_at,
            prompt=exchange.request.messages,
            canary=exchange.canary,
            answers=(collected.answer(exchange.side, exchange.served.uri, signals),),
        )
        self.parts.writer.put(interaction)
        if self.mirror and not exchange.canary and collected.error is None:
            self.mirror.offer(exchange.request, interaction)

    def _signals(self, messages: Sequence[Any], collected: Collected) -> Signals:
        try:
            return self.parts.detect(messages, collected.text)
        except Exception as error:  # an injected detector that fails must not lose the answer; it is reported instead
            self._trouble = f"detector: {type(error).__name__}: {error}; its answers are logged without signals."
            return Signals(refusal=False, violation=False)


async def _bridge(served: Served, request: ChatRequest) -> AsyncGenerator[Piece]:
    """Pieces from the backend's thread; leaving this early ends the work there."""
    loop = asyncio.get_running_loop()
    incoming: asyncio.Queue[Piece | BaseException | None] = asyncio.Queue()
    cancelled = threading.Event()

    def hand_over(item: Piece | BaseException | None) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(incoming.put_nowait, item)

    def work() -> None:
        end: BaseException | None = None
        try:
            if not cancelled.is_set():
                for piece in served.backend.pieces(request, cancelled):
                    hand_over(piece)
        except BackendError as error:
            end = error
        except Exception as error:
            end = BackendError(f"{type(error).__name__}: {error}", status=500, code="internal_error")
        finally:
            served.end()
            hand_over(end)

    try:
        served.threads.submit(work)
    except RuntimeError:
        served.end()
        raise BackendError("the version that was to answer has just ended; try again.", status=503) from None
    try:
        while (item := await incoming.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        cancelled.set()
