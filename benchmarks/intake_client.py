"""A load client of `POST /v1/feedback/{source}`, a process of its own: raw HTTP/1.1 at a steady rate, whatever comes.

`python -m benchmarks.intake_client < spec.json > result.json`. Open loop: request `n` is due `n / rate` seconds after
the start, and its latency counts from then, so that a slow server cannot slow the load down and hide it. Requests are
built before the clock starts; a connection that an answer left open is used again.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import sys
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

SHARES = {"valid": 50, "replayed": 12, "anonymous": 12, "malformed": 10, "oversized": 8, "path": 5, "bomb": 3}
"""Kinds of requests and their shares of the mix."""

_TRIES = 3  # a connection may close under a request: it is sent again under its key, as a client does
_OVERSIZED = 6_000_000  # declared; intake.max_body_bytes is 5 MB
_SENT_OF_IT = 20_000  # before the client looks for the answer
_BOMB = gzip.compress(b" " * 50_000_000, 9)  # 49 kB that want to be 50 MB
_PATHS = ("../../etc/passwd", "%2e%2e%2f%2e%2e%2fetc", "human_pairs/../..", "a" * 3000, "%00", "human_pairs%00")


@dataclass(frozen=True, slots=True)
class Wanted:
    """One request: its kind, the id of the row that a 202 puts on disk, and its bytes."""

    kind: str
    row_id: str
    data: bytes


@dataclass(slots=True)
class Outcome:
    """The outcome of one request, in seconds after it was due."""

    kind: str
    row_id: str
    status: int = 0
    started_s: float = 0.0
    took_s: float = 0.0
    sent_again: int = 0


@dataclass(slots=True)
class Pool:
    """Connections that are open and unused."""

    host: str
    port: int
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=list)

    async def exchange(self, data: bytes, *, whole: bool) -> int:
        """Send one request and read its answer; returns the status. Not `whole`: the connection ends with it."""
        reader, writer = self.idle.pop() if self.idle else await asyncio.open_connection(self.host, self.port)
        try:
            writer.write(data)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
        except BaseException:
            writer.close()
            raise
        if not whole or b"connection: close" in head or reader.at_eof():
            writer.close()
        else:
            self.idle.append((reader, writer))
        return int(head[9:12])


def build(count: int, kinds: Sequence[str], token: str, seed: int, name: str) -> list[Wanted]:
    """The requests of one round, drawn from the kinds by their shares."""
    rng = Random(seed)
    drawn = rng.choices(list(kinds), [SHARES[kind] for kind in kinds], k=count)
    return [_request(rng, kind, token, f"{name}-{number}", name) for number, kind in enumerate(drawn)]


def _request(rng: Random, kind: str, token: str, name: str, round_name: str) -> Wanted:
    row_id = f"replayed-{round_name}" if kind == "replayed" else f"{kind}-{name}"
    headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": row_id, "Content-Type": "application/x-ndjson"}
    path, body = "human_pairs", _row(row_id)
    if kind == "anonymous":
        headers["Authorization"] = rng.choice(["", "Bearer", "Bearer plt_guess", "bearer " + "x" * 4000])
    elif kind == "malformed":
        body = rng.choice([b'{"prompt": ', b"\xff\xfe", b"[]", b'{"prompt": "q"}', zlib.compress(body)])
    elif kind == "path":
        path = rng.choice(_PATHS)
    elif kind == "bomb":
        headers["Content-Encoding"], body = "gzip", _BOMB
    headers["Content-Length"] = str(len(body))
    if kind == "oversized":
        headers["Content-Length"], body = str(_OVERSIZED), b"x" * _SENT_OF_IT
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return Wanted(kind, row_id, f"POST /v1/feedback/{path} HTTP/1.1\r\nHost: localhost\r\n{head}\r\n".encode() + body)


def _row(row_id: str) -> bytes:
    row = {
        "id": row_id,
        "prompt": f"Which of the two answers to {row_id} is the better one?",
        "chosen": f"The first, because it names {row_id}. " * 6,
        "rejected": "Neither of them, I would say. " * 6,
        "annotator": "load",
    }
    return json.dumps(row).encode() + b"\n"


async def offer(requests: Sequence[Wanted], host: str, port: int, rate: float) -> tuple[list[Outcome], float]:
    """Offer every request when it is due; the outcomes, and the seconds until the last was answered."""
    pool, began = Pool(host, port), time.perf_counter()
    tasks = []
    for number, wanted in enumerate(requests):
        due = began + number / rate
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(_one(pool, wanted, due)))
    outcomes = await asyncio.gather(*tasks)
    return outcomes, time.perf_counter() - began


async def _one(pool: Pool, wanted: Wanted, due: float) -> Outcome:
    outcome = Outcome(wanted.kind, wanted.row_id, started_s=time.perf_counter() - due)
    for _ in range(_TRIES):
        try:
            outcome.status = await asyncio.wait_for(pool.exchange(wanted.data, whole=wanted.kind != "oversized"), 120)
            break
        except (OSError, EOFError, TimeoutError):
            outcome.sent_again += 1
    outcome.took_s = time.perf_counter() - due
    return outcome


def main() -> None:
    """Read a spec, offer the load, write the outcome."""
    spec: dict[str, Any] = json.load(sys.stdin)
    requests = build(spec["requests"], spec["kinds"], spec["token"], spec["seed"], spec["name"])
    before = time.process_time()
    outcomes, wall_s = asyncio.run(offer(requests, spec["host"], spec["port"], spec["rate"]))
    rows = [[o.kind, o.row_id, o.status, o.started_s, o.took_s, o.sent_again] for o in outcomes]
    json.dump({"wall_s": wall_s, "cpu_s": time.process_time() - before, "outcomes": rows}, sys.stdout)


if __name__ == "__main__":
    main()
