"""Who answers at an address: asked of real sockets."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from urllib.parse import parse_qs, urlsplit

import orjson
import pytest

from plumbline.tasks.access.identity import who_answers
from plumbline.tasks.access.requests import proof


@contextmanager
def _answering(status: int, body: bytes, secret: str = "", port: int | None = None) -> Iterator[tuple[str, list[str]]]:
    """A server that answers this, or with a secret the proof for a port (its own by default); and what it was sent."""
    heard: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append(str(self.headers))
            nonce = parse_qs(urlsplit(self.path).query)["nonce"][0]
            mine = self.server.server_address[1] if port is None else port
            self.send_response(status)
            self.send_header("Location", "http://127.0.0.1:9/")
            self.end_headers()
            self.wfile.write(orjson.dumps({"proof": proof(secret, nonce, mine)}) if secret else body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/api", heard
    server.shutdown()
    server.server_close()


def test_a_server_with_the_secret_is_our_own() -> None:
    with _answering(200, b"", "secret") as (url, heard):
        assert who_answers(url, "secret") == "own"
        assert who_answers(url, "another") == "foreign"
        assert who_answers(url, None) == "foreign"
    assert not any("authorization" in headers.lower() or "secret" in headers for headers in heard)


@pytest.mark.parametrize(
    ("status", "body"), [(200, b"true"), (200, b"{}"), (200, b"<html>"), (401, b""), (404, b""), (302, b""), (500, b"")]
)
def test_anything_else_is_foreign(status: int, body: bytes) -> None:
    with _answering(status, body) as (url, _):
        assert who_answers(url, "secret") == "foreign"


def test_a_proof_cannot_be_relayed_from_another_port() -> None:
    """Somebody on our port hands the nonce on to our real server, which listens on another one."""
    with _answering(200, b"", "secret", port=4200) as (url, _):
        assert who_answers(url, "secret") == "foreign"


def test_what_is_no_http_server_is_foreign_and_a_closed_port_silent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def greet() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"220 mail.example ready\r\n\r\n")

        Thread(target=greet, daemon=True).start()
        assert who_answers(f"http://127.0.0.1:{port}", "secret") == "foreign"
    assert who_answers(f"http://127.0.0.1:{port}", "secret") == "silent"
