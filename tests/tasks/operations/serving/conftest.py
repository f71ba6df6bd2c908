"""A real HTTP server on a free port around scripted backends, so that tests decide what is said and when."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from sqlalchemy import Engine

from plumbline.tasks.operations.serve_model import application
from plumbline.tasks.operations.serving import log
from plumbline.tasks.operations.serving.chat import BackendError, ChatRequest, Piece
from plumbline.tasks.operations.serving.log_writer import LogWriter
from plumbline.tasks.operations.serving.service import ChatService, Parts
from plumbline.tasks.operations.serving.signals import rule_detector
from plumbline.tasks.operations.serving.slots import Slot, Watcher
from plumbline.tasks.params.operations import OperationsParams
from plumbline.tasks.params.serving import ServingParams
from plumbline.tasks.storage.database import open_database


@dataclass
class Scripted:
    """A backend that says `words`, a piece each, pausing between them; `asked` keeps the requests."""

    words: Sequence[str] = ("Hello", " there", ".")
    pause_s: float = 0.0
    fails: BackendError | None = None
    lanes: int = 4
    gate: threading.Event | None = None
    asked: list[ChatRequest] = field(default_factory=list)
    said: int = 0
    cancelled: int = 0
    closed: bool = False

    def pieces(self, request: ChatRequest, cancelled: threading.Event) -> Iterator[Piece]:
        self.asked.append(request)
        if self.gate is not None:
            self.gate.wait(30)
        if self.fails:
            raise self.fails
        for word in self.words:
            if cancelled.wait(self.pause_s) if self.pause_s else cancelled.is_set():
                self.cancelled += 1
                return
            self.said += 1
            yield Piece(word)
        yield Piece("", "stop", 7, len(self.words))

    def alive(self) -> bool:
        return not self.closed

    def close(self) -> None:
        self.closed = True


@dataclass
class Registry:
    """Aliases and backends of a make-believe registry; `verify` may refuse a version."""

    aliases: dict[str, str | None]
    backends: dict[str, Any]
    verify: Callable[[str], None] = lambda uri: None

    def resolve(self, alias: str) -> str | None:
        return self.aliases.get(alias)

    def load(self, uri: str) -> Any:
        self.verify(uri)
        return self.backends[uri]

    def slot(self, role: str, alias: str) -> Slot:
        slot = Slot(role, alias, self.resolve, self.load, retry_s=0.0)
        slot.refresh()
        return slot


class Clock:
    """Each look is a millisecond later."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(milliseconds=1)
        return self.now


@dataclass
class Running:
    """A server that answers, and what is behind it."""

    url: str
    service: ChatService
    engine: Engine
    registry: Registry

    def logged(self) -> list[Any]:
        """Everything in the log, once all that was answered is there."""
        self.service._after.submit(int).result()
        assert self.service.parts.writer.flush(20)
        return list(log.interactions(self.engine))


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return open_database(tmp_path, OperationsParams(), log.METADATA)


def wait_for(condition: Callable[[], bool], what: str, within_s: float = 60.0) -> None:
    """Until a condition holds; fails, naming it, where it does not."""
    until = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < until, f"waited for {what}"
        time.sleep(0.01)


@pytest.fixture
def serving(engine: Engine) -> Iterator[Callable[..., Running]]:
    """Start a server; everything started is ended with the test."""
    ends: list[Callable[[], None]] = []

    def start(champion: Any = None, challenger: Any = None, *, token: str | None = None, **params: Any) -> Running:
        backends = {"models:/assistant/1": champion or Scripted(), "models:/assistant/2": challenger}
        aliases = {"champion": "models:/assistant/1", "challenger": "models:/assistant/2" if challenger else None}
        registry = Registry(aliases, backends)
        settings = ServingParams.model_validate({"shadow": {"share": 1.0}, "poll_s": 0.02, **params})
        slot, shadow = registry.slot("champion", "champion"), registry.slot("shadow", "challenger")
        duties: Any = {item.role: (settings.poll_s, item.refresh) for item in (slot, shadow)}
        parts = Parts(
            champion=slot,
            writer=LogWriter(lambda batch: log.record_all(engine, batch), settings.log.queue),
            feedback=lambda item: log.add_feedback(engine, item),
            detect=rule_detector(settings.safety),
            clock=Clock(),
            pseudonym=lambda user: hashlib.sha256(user.encode()).hexdigest()[:32],
            shadow=shadow,
            watcher=Watcher(duties),
            slots=[shadow],
        )
        service = ChatService(parts, settings)
        url, end = run_app(application(service, settings, model_name="assistant", token=token))
        ends.append(end)
        return Running(url, service, engine, registry)

    yield start
    for end in ends:
        end()


def run_app(app: Any) -> tuple[str, Callable[[], None]]:
    """Uvicorn on a free port in a thread: its URL, and how to end it."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    wait_for(lambda: server.started, "the server to start")

    def end() -> None:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()

    return f"http://127.0.0.1:{listener.getsockname()[1]}", end
