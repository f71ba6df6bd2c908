"""A chat server on loopback that plays scripted behaviours, and a judge behind it that counts the word "good"."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Scripted:
    """What to send back: a status and a body, after a delay; `drip` sends a byte at a time."""

    body: str
    status: int = 200
    delay: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    drip: bool = False


Behaviour = Callable[[dict[str, Any], int], Scripted]
AT_ONCE = {"retry-after-ms": "1"}  # spares the tests the client's real backoff


@dataclass
class Server:
    """A chat server that does what it is told, and remembers what it was asked."""

    url: str
    behaviour: Behaviour
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)


@contextmanager
def chat_server() -> Iterator[Server]:
    """Serve until the block ends; the behaviour is `honest` until another is set."""
    told = Server("", lambda request, number: verdict(honest(request)))
    lock, released = threading.Lock(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with lock:
                told.requests.append(request)
                told.headers.append({name.lower(): value for name, value in self.headers.items()})
                number = len(told.requests)
            scripted = told.behaviour(request, number)
            released.wait(scripted.delay)
            body = scripted.body.encode()
            self.send_response(scripted.status)
            for name, value in {"content-type": "application/json", **scripted.headers}.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            try:
                for byte in range(len(body)) if scripted.drip else ():
                    self.wfile.write(body[byte : byte + 1])
                    released.wait(0.05)
                self.wfile.write(b"" if scripted.drip else body)
            except OSError:
                self.close_connection = True  # the judge gave up on us

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    told.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield told
    finally:
        released.set()
        http.shutdown()
        thread.join()
        http.server_close()


def completion(content: str | None, *, finish: str = "stop") -> Scripted:
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": finish}
    usage = {"prompt_tokens": 200, "completion_tokens": 10, "total_tokens": 210}
    return Scripted(json.dumps({"id": "1", "object": "chat.completion", "choices": [choice], "usage": usage}))


def verdict(value: dict[str, Any]) -> Scripted:
    return completion(json.dumps(value))


def shown(request: dict[str, Any]) -> list[str]:
    """The candidates of a request in the order shown, as an exact reader of the fenced blocks finds them."""
    lines = request["messages"][1]["content"].split("\n")
    return [json.loads(lines[at + 1]) for at, line in enumerate(lines) if re.match(r"=== \w+ begin candidate", line)]


def quality(text: str) -> int:
    return text.count("good")


def honest(request: dict[str, Any]) -> dict[str, Any]:
    """The verdict of a judge that counts the word "good"."""
    counts = [quality(text) for text in shown(request)]
    if "Rank the" in request["messages"][1]["content"]:
        return {"ranking": ["ABCDEFGH"[at] for at in sorted(range(len(counts)), key=lambda at: -counts[at])]}
    return {"winner": "tie" if counts[0] == counts[1] else "AB"[counts[1] > counts[0]]}
