"""Mirroring: a share of the requests is answered once more by another version, after the user has their answer.

The queue is bounded and nobody waits for it: what finds it full is dropped and counted. Which requests are mirrored
follows from their ids alone, so that any server picks the same ones, and a larger share contains the smaller.
"""

from __future__ import annotations

import hashlib
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from plumbline.data_contracts.interactions import Interaction
from plumbline.tasks.operations.serving.chat import BackendError, ChatRequest
from plumbline.tasks.operations.serving.collect import Collected
from plumbline.tasks.operations.serving.slots import Resolve, Served, Slot

_IDLE_S = 0.2


def falls_into(share: float, salt: str, key: str) -> bool:
    """True if a key belongs to the share: its place in [0, 1) is fixed by the salt and the key, for ever."""
    digest = hashlib.sha256(f"{salt}\n{key}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64 < share


def first_held(resolve: Resolve, fallback: str | None) -> Resolve:
    """Resolves an alias, and if nobody holds it, the fallback."""

    def find(alias: str) -> str | None:
        held = resolve(alias)
        return resolve(fallback) if held is None and fallback is not None else held

    return find


@dataclass(frozen=True, slots=True)
class Mirrored:
    """A request that was answered, to be answered once more."""

    request: ChatRequest
    interaction: Interaction


Done = Callable[[Interaction, Collected, Served], None]
"""Takes the interaction, the second answer and the version that gave it."""


class Mirror:
    """One thread that answers mirrored requests, one at a time, with what is in the slot."""

    def __init__(self, slot: Slot, share: float, capacity: int, done: Done) -> None:
        self._slot = slot
        self._share = share
        self._done = done
        self._waiting: queue.Queue[Mirrored] = queue.Queue(capacity)
        self._cancelled = threading.Event()
        self.answered = 0
        self.dropped = 0
        self.failed = 0
        self.trouble: str | None = None
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Mirrored requests in the queue."""
        return self._waiting.qsize()

    def offer(self, request: ChatRequest, interaction: Interaction) -> bool:
        """Mirror a request if it is one of the share; never waits. Says whether it will be."""
        served = self._slot.uri
        if served is None or served == interaction.answers[0].model_uri:
            return False
        if not falls_into(self._share, "shadow", interaction.id):
            return False
        try:
            self._waiting.put_nowait(Mirrored(request, interaction))
        except queue.Full:
            self.dropped += 1
            return False
        return True

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait until nothing is left to mirror."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self._waiting.unfinished_tasks == 0:
                return True
            time.sleep(0.01)
        return False

    def close(self) -> None:
        """End; what waits is dropped."""
        self._cancelled.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._cancelled.is_set():
            try:
                job = self._waiting.get(timeout=_IDLE_S)
            except queue.Empty:
                continue
            try:
                self._answer(job)
            except Exception as error:  # this thread must not end with one request; /healthz reports it
                self.failed += 1
                self.trouble = f"mirror: {job.interaction.id}: {type(error).__name__}: {error}"
            finally:
                self._waiting.task_done()

    def _answer(self, job: Mirrored) -> None:
        served = self._slot.begin()
        if served is None:
            self.dropped += 1
            return
        try:
            answer = self._collect(served, job.request)
        finally:
            served.end()
        if not self._cancelled.is_set():
            self.answered += 1
            self._done(job.interaction, answer, served)

    def _collect(self, served: Served, request: ChatRequest) -> Collected:
        answer = Collected()
        try:
            for piece in served.backend.pieces(request, self._cancelled):
                answer.add(piece)
        except BackendError as error:
            answer.fail(str(error))
        except Exception as error:  # whatever a mirrored answer meets is logged as its error, never the user's
            answer.fail(f"{type(error).__name__}: {error}")
        return answer
