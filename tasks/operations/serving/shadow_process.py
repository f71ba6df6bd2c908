"""A checkpoint that answers in a process of its own, at low priority, so that answering users is not slowed down.

In one process the two would share Python's lock. For the same reason an answer comes in two messages, its first bit
and all the rest: each message wakes a thread of the serving process, which else asks for the lock once a token.
The process ends with its parent, however that ends: its pipe breaks.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection

from plumbline.data_contracts.errors import OperationsError, PlumblineError
from plumbline.tasks.operations.serving.chat import BackendError, ChatRequest, Piece
from plumbline.tasks.operations.serving.local_backend import LocalBackend, LocalSpec

_SPAWN = multiprocessing.get_context("spawn")
_POLL_S = 0.2
_END_S = 5.0


class ShadowProcess:
    """`tasks.operations.serving.chat.Backend` in a process; one request at a time."""

    lanes = 1

    def __init__(self, spec: LocalSpec, *, nice: int, timeout_s: float, start_s: float = 600.0) -> None:
        """Start the process and wait until it has loaded. Raises its own error, or `OperationsError`."""
        self._timeout_s = timeout_s
        self._connection, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_serve, args=(theirs, spec, nice), name="plumbline-shadow", daemon=True)
        self._process.start()
        theirs.close()
        try:
            self._await_ready(start_s)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int | None:
        """The process's id."""
        return self._process.pid

    def pieces(self, request: ChatRequest, cancelled: threading.Event) -> Iterator[Piece]:
        """The answer, its first bit and then the rest.

        A process that died or took too long is ended: `BackendError`, from then on.
        """
        deadline = time.monotonic() + self._timeout_s
        try:
            self._connection.send(request)
            while True:
                if cancelled.is_set() or time.monotonic() > deadline:
                    raise TimeoutError(f"it was given {self._timeout_s:g} s")
                if not self._connection.poll(_POLL_S):
                    continue
                item = self._connection.recv()
                if isinstance(item, BackendError):
                    raise item
                if item is None:
                    return
                yield item
        except (OSError, EOFError) as error:  # TimeoutError is an OSError
            self.close()
            raise BackendError(f"the shadow process cannot answer: {error or 'it ended'}.") from error

    def alive(self) -> bool:
        """True if the process can still answer."""
        return self._process.is_alive()

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.terminate()
        self._process.join(_END_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join(_END_S)

    def _await_ready(self, start_s: float) -> None:
        if not self._connection.poll(start_s):
            raise OperationsError(f"the shadow process did not load its model within {start_s:g} s. Is memory short?")
        try:
            told = self._connection.recv()
        except EOFError as error:
            raise OperationsError(
                "the shadow process ended while it loaded its model; for lack of memory, often. Set "
                "serving.shadow.share=0 to do without it."
            ) from error
        if isinstance(told, PlumblineError):
            raise told


def in_two(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The first bit of an answer as it comes, for its clock, and everything after it in one piece at the end."""
    incoming = iter(pieces)
    first = next(incoming, None)
    if first is None:
        return
    yield first
    rest = list(incoming)
    if rest:
        yield replace(rest[-1], text="".join(piece.text for piece in rest))


def _serve(connection: Connection, spec: LocalSpec, nice: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process in order
    os.nice(nice)
    try:
        backend = LocalBackend.load(spec)
    except PlumblineError as error:
        connection.send(error)
        return
    connection.send("ready")
    try:
        while True:
            request = connection.recv()
            try:
                for piece in in_two(backend.pieces(request, threading.Event())):
                    connection.send(piece)
                connection.send(None)
            except BackendError as error:
                connection.send(error)
    except (EOFError, OSError):
        return  # the parent is gone, or wants no more
