"""The endpoint as a real process: every answer, an attack, a kill -9."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import os
import socket
import subprocess
import sys
import time
import urllib.request
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import httpx
import orjson
import pytest

from plumbline.data_contracts.records import Quarantined
from plumbline.flows.graph.workspaces import init_workspace
from plumbline.tasks.data.feedback import SOURCES
from plumbline.tasks.data.feedback.validate import raw_batches
from plumbline.tasks.operations.intake.openapi import RequestRefusal, RowVerdicts
from plumbline.tasks.operations.intake.tokens import create_token, token_file

BOUNDS = (
    "intake.max_body_bytes=20000", "intake.max_decoded_bytes=30000", "intake.max_rows=50", "intake.seal_every_s=1",
    "intake.min_free_bytes=0", "intake.max_values=2000", "intake.idle_timeout_s=5", "intake.max_connections=150",
)  # fmt: skip


def pair(number: object) -> dict[str, str]:
    return {"id": f"r-{number}", "prompt": f"question {number}?", "chosen": f"answer {number}", "rejected": "no"}


def nested(levels: int) -> Any:
    return {"a": nested(levels - 1)} if levels else 1


def ndjson(*rows: object) -> bytes:
    return b"".join(orjson.dumps(row) + b"\n" for row in rows)


@dataclass
class Endpoint:
    """`plumbline intake serve` as a process of its own."""

    root: Path
    token: str
    url: str
    process: subprocess.Popen[bytes]

    def raw_rows(self) -> list[dict[str, str]]:
        """Every row of the raw store."""
        files = sorted((self.root / "data/raw").rglob("*.jsonl"))
        return [orjson.loads(line) for file in files for line in file.read_bytes().splitlines()]


def make_workspace(root: Path) -> str:
    """A workspace with tight bounds and one token."""
    from plumbline.tasks.params.document import save_params
    from plumbline.tasks.params.layers import load_params

    init_workspace(root)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    save_params(root, load_params(root, (), [*BOUNDS, f"intake.port={port}"])[1])
    return create_token(token_file(root), "tester", ["human_pairs", "judged_pairs"])


def start(root: Path, token: str) -> Endpoint:
    """Start the endpoint and wait until it answers."""
    from plumbline.tasks.params.layers import load_params

    port = load_params(root)[0].intake.port
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    command = [sys.executable, "-m", "plumbline", "intake", "serve", "-C", str(root)]
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[4])
    with (root / "serve.log").open("ab") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    until = time.monotonic() + 240
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/healthz", timeout=2):
                return Endpoint(root, token, url, process)
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"the endpoint did not come up:\n{(root / 'serve.log').read_text()[-2000:]}")


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    root = tmp_path_factory.mktemp("intake") / "workspace"
    running = start(root, make_workspace(root))
    yield running
    running.process.terminate()
    running.process.wait(60)


NDJSON = "application/x-ndjson"


def send(
    endpoint: Any, body: bytes, key: str | None = "k", source: str = "human_pairs", **headers: str
) -> httpx.Response:
    given = {"authorization": f"Bearer {endpoint.token}", "content-type": NDJSON}
    given |= {"idempotency-key": key} if key is not None else {}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(f"{endpoint.url}/v1/feedback/{source}", content=body, headers=given, timeout=60)


def until_sealed(endpoint: Any, wanted: set[str]) -> list[str]:
    """Ids in the raw store once all wanted are there, or after a while."""
    until = time.monotonic() + 180
    while time.monotonic() < until:
        ids = [row["id"] for row in endpoint.raw_rows()]
        if wanted <= set(ids):
            return ids
        time.sleep(0.3)
    return ids


@pytest.mark.slow
def test_a_record_keeps_the_token_that_sent_it_whatever_it_claims(endpoint: Any) -> None:
    """A second token sends rows that claim to be the first's."""
    stranger = create_token(token_file(endpoint.root), "stranger")
    forged = {**pair("s1"), "metadata": {"senders": ["tester"], "origin": {"senders": ["tester"]}}}
    assert send(endpoint, ndjson(pair("t1")), "own").status_code == 202
    headers = {"authorization": f"Bearer {stranger}"}
    assert send(endpoint, ndjson(forged), "forged", **headers).status_code == 202
    assert send(endpoint, ndjson({**pair("s2"), "senders": ["tester"]}), "field", **headers).status_code == 422
    until_sealed(endpoint, {"r-t1", "r-s1"})
    records = [
        row.outcome
        for source, name, path in raw_batches(endpoint.root / "data/raw", within=endpoint.root)
        for row in SOURCES[source](path, name)
    ]
    sent = {record.id: record.origin.senders for record in records if not isinstance(record, Quarantined)}
    assert (sent["r-t1"], sent["r-s1"]) == (("tester",), ("stranger",))
    assert all(sent.values())


@pytest.mark.slow
def test_accepted_rows_land_and_quarantined_ones_are_named(endpoint: Any) -> None:
    bad = {"id": "bad-1", "prompt": "q?", "chosen": " ", "rejected": "no"}
    answer = send(endpoint, ndjson(pair("v1"), bad, {"prompt": "x"}), "verdicts")
    assert answer.status_code == 202
    told = answer.json()
    assert (told["accepted"], told["quarantined"]) == (1, 2)
    assert [(row["row"], row["status"]) for row in told["verdicts"]] == [
        (1, "accepted"), (2, "quarantined"), (3, "quarantined")
    ]  # fmt: skip
    assert told["verdicts"][1]["reason"] == "empty_text" and told["verdicts"][1]["field"] == "chosen"
    ids = until_sealed(endpoint, {"r-v1"})
    assert ids.count("r-v1") == 1 and "bad-1" not in ids


@pytest.mark.slow
def test_json_lists_and_gzip_are_understood(endpoint: Any) -> None:
    listed = orjson.dumps([pair("l1"), pair("l2")])
    assert send(endpoint, listed, "list", content_type="application/json").json()["accepted"] == 2
    assert send(endpoint, gzip.compress(ndjson(pair("g1"))), "gz", content_encoding="gzip").json()["accepted"] == 1
    assert {"r-l1", "r-l2", "r-g1"} <= set(until_sealed(endpoint, {"r-l1", "r-l2", "r-g1"}))


@pytest.mark.slow
def test_the_same_key_is_answered_the_same_and_taken_once(endpoint: Any) -> None:
    body = ndjson(pair("same"))
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: send(endpoint, body, "twice"), range(12)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({orjson.dumps(answer.json()["verdicts"]) for answer in answers}) == 1
    assert sum("idempotent-replayed" in answer.headers for answer in answers) == 11
    other = send(endpoint, ndjson(pair("other")), "twice")
    assert other.status_code == 409 and other.json()["error"]["code"] == "key_reused"
    ids = until_sealed(endpoint, {"r-same"})
    assert ids.count("r-same") == 1 and "r-other" not in ids


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (401, ndjson(pair("u")), {"authorization": ""}),
        (401, ndjson(pair("u")), {"authorization": "Bearer plt_wrong"}),
        (401, ndjson(pair("u")), {"authorization": "Basic dTpw"}),
        (403, ndjson(pair("u")), {"source": "unpaired_responses"}),
        (404, ndjson(pair("u")), {"source": "nothing"}),
        (404, ndjson(pair("u")), {"source": "..%2f..%2fetc%2fpasswd"}),
        (404, ndjson(pair("u")), {"source": "human_pairs%00"}),
        (400, ndjson(pair("u")), {"key": None}),
        (400, ndjson(pair("u")), {"key": "a b"}),
        (400, ndjson(pair("u")), {"key": "x" * 256}),
        (415, ndjson(pair("u")), {"content_type": "text/csv"}),
        (415, ndjson(pair("u")), {"content_encoding": "br"}),
        (400, b"", {}),
        (400, b'"text"\n', {}),
        (400, b"{}", {"content_type": "application/json"}),
        (400, b"[" * 1500, {"content_type": "application/json"}),
        (400, b"[" * 900 + b"]" * 900, {"content_type": "application/json"}),
        (413, b"[" * 5000, {"content_type": "application/json"}),
        (400, ndjson({**pair("u"), "metadata": nested(100)}), {}),
        (413, ndjson({**pair("u"), "metadata": {"wide": [[]] * 2000}}), {}),
        (400, b"no gzip", {"content_encoding": "gzip"}),
        (400, gzip.compress(ndjson(pair("u")))[:-9], {"content_encoding": "gzip"}),
        (400, gzip.compress(b"") * 900, {"content_encoding": "gzip"}),
        (413, b"x" * 20_001, {}),
        (413, gzip.compress(b" " * 15_000_000), {"content_encoding": "gzip"}),  # 15 kB that become 15 MB
        (413, ndjson(*({} for _ in range(51))), {}),
        (422, ndjson({"prompt": "q"}), {}),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else "",  # bodies are long, and gzip writes the time
)  # fmt: skip
def test_what_is_not_taken(endpoint: Any, status: int, body: bytes, headers: dict[str, Any]) -> None:
    answer = send(endpoint, body, **{"key": "refused", **headers})
    assert answer.status_code == status, answer.text
    if status != 422:
        assert set(answer.json()["error"]) >= {"code", "message"}
    assert "Traceback" not in answer.text and "x-request-id" in answer.headers


def test_broken_rows_are_named_by_line_or_place(endpoint: Any) -> None:
    assert send(endpoint, ndjson(pair("x")) + b'\n{"a":\n').json()["error"]["line"] == 3
    listed = send(endpoint, orjson.dumps([pair("x"), 7]), content_type="application/json")
    assert listed.json()["error"]["field"] == "[1]"


def test_a_body_without_a_length_is_bounded_too(endpoint: Any) -> None:
    headers = {"authorization": f"Bearer {endpoint.token}", "content-type": NDJSON, "idempotency-key": "chunks"}
    parts = (b"x" * 1000 for _ in range(30))
    answer = httpx.post(f"{endpoint.url}/v1/feedback/human_pairs", content=parts, headers=headers, timeout=30)
    assert answer.status_code == 413


def test_what_is_refused_by_its_head_is_answered_before_its_body_comes(endpoint: Any) -> None:
    head = (
        f"POST /v1/feedback/human_pairs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {endpoint.token}\r\n"
        f"Content-Type: {NDJSON}\r\nIdempotency-Key: head\r\nContent-Length: 20001\r\n\r\n"
    )
    host, port = endpoint.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(head.encode())
        assert connection.recv(4000).startswith(b"HTTP/1.1 413")
        connection.sendall(b"x" * 20_001)  # passed over: the next request on this connection is served
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        read = b""
        while b"HTTP/1.1 200" not in read:
            read += (more := connection.recv(4000))
            assert more, read


def test_a_refused_key_is_free_for_the_corrected_rows(endpoint: Any) -> None:
    assert send(endpoint, ndjson({"prompt": "q"}), "corrected").status_code == 422
    assert send(endpoint, ndjson(pair("corrected")), "corrected").status_code == 202


def test_the_document_says_what_is_sent_and_answered(endpoint: Any) -> None:
    """What a generated client relies on: statuses, headers, kinds of feedback, and the very keys of an answer."""
    document = httpx.get(f"{endpoint.url}/openapi.json").json()
    post = document["paths"]["/v1/feedback/{source}"]["post"]
    statuses = "202 400 401 403 404 408 409 413 415 422 429 500 503 507"
    assert sorted(post["responses"]) == statuses.split()
    assert set(post["requestBody"]["content"]) == {"application/x-ndjson", "application/json"}
    named = {parameter["name"]: parameter for parameter in post["parameters"]}
    assert named["Idempotency-Key"]["required"]
    assert "human_pairs" in named["source"]["schema"]["enum"]
    assert post["security"] == [{"bearer": []}]
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    for body, status, model in (
        (ndjson(pair("documented"), {"prompt": "q"}), 202, RowVerdicts),
        (ndjson({"prompt": "q"}), 422, RowVerdicts),
        (b"{", 400, RequestRefusal),
    ):
        answer = send(endpoint, body, f"documented-{status}")
        assert answer.status_code == status
        assert model.model_validate_json(answer.content).model_dump(exclude_unset=True) == answer.json()
        reference = post["responses"][str(status)]["content"]["application/json"]["schema"]["$ref"]
        assert reference.endswith(f"/{model.__name__}")


def test_no_token_and_no_row_is_in_the_log(endpoint: Any) -> None:
    send(endpoint, ndjson(pair("logged-secret-row")), "logged")
    log = (endpoint.root / "serve.log").read_text()
    assert '"client":"tester"' in log and endpoint.token not in log and "logged-secret-row" not in log
    assert "Traceback" not in log


def test_a_second_endpoint_is_refused(endpoint: Any) -> None:
    from plumbline.data_contracts.errors import UsageError
    from plumbline.tasks.operations.serve_intake import Intake
    from plumbline.tasks.params.layers import load_params

    with pytest.raises(UsageError, match="another"), Intake(endpoint.root, load_params(endpoint.root)[0]):
        pass


async def attack(
    endpoint: Any, requests: int, per_s: float, seed: int, accepted: set[str]
) -> tuple[Counter[int], float]:
    """Requests of every kind at a steady rate; status counts and the achieved rate. Fills in ids answered 202."""
    rng, statuses = Random(seed), Counter[int]()
    limits = httpx.Limits(max_connections=100, max_keepalive_connections=100)
    good = {"authorization": f"Bearer {endpoint.token}", "content-type": NDJSON}
    replayed, broken = ndjson(pair(f"replay-{seed}")), Counter[str]()
    held: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def one(client: httpx.AsyncClient, number: int) -> None:
        kind = rng.choices(
            ["valid", "oversized", "malformed", "replayed", "anonymous", "path", "bomb", "deep", "wide", "slow"],
            [50, 8, 10, 12, 12, 5, 3, 3, 3, 3],
        )[0]
        if kind == "slow":  # never more than half a request; the server ends it, or we at the end
            host, port = endpoint.url.removeprefix("http://").split(":")
            with contextlib.suppress(OSError):  # it may have been killed
                held.append(await asyncio.open_connection(host, int(port)))
                held[-1][1].write(rng.choice([b"", b"POST /v1/feedback/human_pairs HTTP/1.1\r\nX-Slow: a"]))
            return
        headers, path, body = (
            {**good, "idempotency-key": f"{seed}-{number}"},
            "human_pairs",
            ndjson(pair(f"{kind}-{seed}-{number}")),
        )
        if kind == "oversized":
            body = b"x" * 30_000
        elif kind == "malformed":
            body = rng.choice([b'{"prompt": ', b"\xff\xfe", b"[]", b'{"prompt": "q"}', zlib.compress(body)])
        elif kind == "replayed":
            headers["idempotency-key"], body = f"replay-{seed}", replayed
        elif kind == "anonymous":
            headers["authorization"] = rng.choice(["", "Bearer", "Bearer plt_guess", "bearer " + "x" * 4000])
        elif kind == "path":
            path = rng.choice(["../../etc/passwd", "%2e%2e%2f%2e%2e%2fetc", "human_pairs/../..", "a" * 3000, "%00"])
        elif kind == "bomb":
            headers["content-encoding"], body = "gzip", gzip.compress(b" " * 5_000_000, 9)
        elif kind in ("deep", "wide"):
            metadata = nested(rng.choice([65, 200])) if kind == "deep" else {"wide": [[]] * 3000}
            body = ndjson({**pair(f"{kind}-{seed}-{number}"), "metadata": metadata})
        answer = None
        for _ in range(3):  # a connection may close under a request: a client sends it again under its key
            try:
                answer = await client.post(f"{endpoint.url}/v1/feedback/{path}", content=body, headers=headers)
                break
            except httpx.TransportError as error:
                broken[f"{kind} {type(error).__name__}"] += 1
        if answer is None:
            statuses[-1] += 1
            return
        statuses[answer.status_code] += 1
        if answer.status_code == 202:
            assert kind in ("valid", "replayed"), f"{kind} was accepted"
            accepted.add(f"r-replay-{seed}" if kind == "replayed" else f"r-valid-{seed}-{number}")

    began = time.monotonic()
    async with httpx.AsyncClient(limits=limits, timeout=60) as client, asyncio.TaskGroup() as group:
        for number in range(requests):
            await asyncio.sleep(max(0.0, began + number / per_s - time.monotonic()))
            group.create_task(one(client, number))
    rate = requests / (time.monotonic() - began)
    for _, writer in held:
        writer.close()
    sys.stderr.write(f"{rate:.0f} requests/s, {dict(statuses)}, sent again: {dict(broken)}\n")
    return statuses, rate


@pytest.mark.long
@pytest.mark.slow
def test_an_attack_gets_nothing_in_and_keeps_nothing_out(endpoint: Any, record_property: Any) -> None:
    accepted: set[str] = set()
    statuses, rate = asyncio.run(attack(endpoint, 800, 200, seed=5, accepted=accepted))
    record_property("requests_per_s", round(rate))
    assert not [status for status in statuses if status >= 500], statuses
    assert statuses[-1] == 0, statuses
    assert {202, 400, 401, 404, 413} <= set(statuses)
    ids = until_sealed(endpoint, accepted)
    attacked = [name for name in ids if "-5" in name and name.startswith(("r-valid-5-", "r-replay-5"))]
    assert sorted(attacked) == sorted(accepted)  # each once, and none but what was answered 202


@pytest.mark.long
@pytest.mark.slow
def test_what_was_answered_before_a_kill_lands_after_the_restart(tmp_path: Path) -> None:
    root = tmp_path / "workspace"
    token = make_workspace(root)
    running = start(root, token)

    accepted: set[str] = set()

    async def kill_within() -> Counter[int]:
        attacking = asyncio.create_task(attack(running, 300, 150, seed=9, accepted=accepted))
        while len(accepted) < 30:
            await asyncio.sleep(0.02)
        running.process.kill()
        running.process.wait()
        return (await attacking)[0]

    assert asyncio.run(kill_within())[-1] > 0  # it was killed under way
    again = start(root, token)
    try:
        ids = until_sealed(again, accepted)
        assert sorted(name for name in ids if name in accepted) == sorted(accepted)
        assert len(ids) == len(set(ids))
    finally:
        again.process.terminate()
        assert again.process.wait(60) == 0
