"""Connections that hold on without sending or reading, against a real server: they end, and keep nobody out."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn

from plumbline.tasks.operations.intake import connections
from plumbline.tasks.operations.intake.connections import bounded

GET = b"GET /small HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /small HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
Server = tuple[uvicorn.Server, Callable[[], socket.socket]]


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers at once, without reading a body: two bytes, or 50 MB."""
    body = b"x" * 50_000_000 if scope["path"] == "/large" else b"ok"
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for start in range(0, len(body), 1_000_000):
        await send({"type": "http.response.body", "body": body[start : start + 1_000_000], "more_body": True})
    await send({"type": "http.response.body", "body": b""})


@pytest.fixture
def idle_s() -> float:
    return 0.5


@pytest.fixture
def server(idle_s: float) -> Iterator[Server]:
    """A server of three connections, and a way to connect to it."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, http=bounded(3, idle_s), log_config=None, lifespan="off", ws="none")
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, args=([listener],), daemon=True)
    thread.start()
    opened: list[socket.socket] = []

    def connect() -> socket.socket:
        opened.append(socket.create_connection(listener.getsockname(), timeout=30))
        return opened[-1]

    yield running, connect
    running.should_exit = True
    for connection in opened:
        connection.close()
    thread.join(30)


def ended(connection: socket.socket, drip: bytes = b"") -> bool:
    """Whether the server ends a connection that sends `drip` for as long as it can."""
    connection.settimeout(0.05)
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            if drip:
                connection.sendall(drip)
            if connection.recv(1000) == b"":
                return True
        except TimeoutError:
            continue
        except OSError:
            return True
    return False


def test_a_connection_that_sends_nothing_is_ended(server: Server) -> None:
    assert ended(server[1]())


def test_a_head_that_trickles_is_ended(server: Server) -> None:
    connection = server[1]()
    connection.sendall(b"GET / HTTP/1.1\r\nX-Slow: ")
    assert ended(connection, b"a")


def test_a_body_that_trickles_after_its_answer_is_ended(server: Server) -> None:
    connection = server[1]()
    connection.sendall(POST)
    assert connection.recv(1000).startswith(b"HTTP/1.1 200")
    assert ended(connection, b"a")


def test_an_answer_that_nobody_reads_is_given_up(server: Server) -> None:
    running, connect = server
    connect().sendall(GET.replace(b"small", b"large"))
    until = time.monotonic() + 30
    while not running.server_state.connections and time.monotonic() < until:
        time.sleep(0.01)
    while (running.server_state.connections or running.server_state.tasks) and time.monotonic() < until:
        time.sleep(0.05)
    assert not running.server_state.connections and not running.server_state.tasks


@pytest.mark.parametrize("idle_s", [600.0])
def test_the_longest_idle_makes_room_and_a_new_one_is_served(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_SPARED_S", 0.0)
    idle = []
    for number in range(1, 4):
        idle.append(server[1]())
        until = time.monotonic() + 30
        while len(server[0].server_state.connections) < number and time.monotonic() < until:
            time.sleep(0.01)
    fourth = server[1]()
    fourth.sendall(GET)
    assert fourth.recv(1000).startswith(b"HTTP/1.1 200")
    assert idle[0].recv(1000) == b""
    assert len(server[0].server_state.connections) <= 3


@pytest.mark.parametrize("idle_s", [600.0])
def test_what_was_idle_for_a_moment_only_is_spared(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_SPARED_S", 60.0)
    before = []
    for number in range(1, 4):
        before.append(server[1]())
        before[-1].sendall(GET)
        assert before[-1].recv(1000).startswith(b"HTTP/1.1 200"), number
    assert ended(server[1]())
