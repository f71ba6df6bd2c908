"""A service that is slow or busy for a moment is not one that is absent."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from plumbline.tasks.operations.services import health
from plumbline.tasks.operations.services.plan import Plan, Service
from plumbline.tasks.params.services import ServicesParams

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tenths of a second in place of seconds."""
    monkeypatch.setattr(health, "_TRIES_S", (0.2, 0.4, 1.5))
    monkeypatch.setattr(health, "_AGAIN_S", 0.05)


@contextmanager
def answering(answer: Callable[[int], int]) -> Iterator[str]:
    """A server; `answer` is given the number of the request, may take its time, and returns the status."""
    asked = iter(range(1_000_000))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status = answer(next(asked))
            try:
                self.send_response(status)
                self.end_headers()
            except OSError:
                return

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/healthz"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def look(url: str) -> health.Health:
    plan = Plan(Path("/nowhere"), ServicesParams(), (), "http://127.0.0.1:9/api", None)
    return health.check(plan, Service("intake", (), "http", url))


def slow(seconds: float) -> Callable[[int], int]:
    def answer(_: int) -> int:
        time.sleep(seconds)
        return 200

    return answer


def test_one_that_answers_late_is_well_and_slow() -> None:
    with answering(slow(0.8)) as url:
        found = look(url)
    assert found.ok
    assert "answers 200; slow to answer: " in found.note


def test_one_that_never_answers_is_slow_with_the_seconds_and_not_absent() -> None:
    with answering(slow(3.0)) as url:
        found = look(url)
    assert not found.ok
    assert re.search(r"slow to answer: nothing within \d+ s", found.note)


def test_a_moment_of_503_is_asked_again() -> None:
    with answering(lambda number: 503 if number == 0 else 200) as url:
        found = look(url)
        assert found.ok and found.note.startswith("answers 200")
    with answering(lambda _: 503) as url:
        found = look(url)
        assert not found.ok and found.note.startswith("answers 503")


def test_one_that_is_absent_is_said_at_once() -> None:
    with answering(slow(0)) as url:
        pass
    began = time.monotonic()
    assert "ConnectError" in look(url).note
    assert time.monotonic() - began < 1
