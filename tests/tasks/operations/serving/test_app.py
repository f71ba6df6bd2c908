"""The endpoint over real HTTP: OpenAI's own client, refusals, feedback, and what abusers send."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest

from plumbline.tasks.operations.serving.chat import BackendError
from tests.tasks.operations.serving.conftest import Running, Scripted, wait_for

Start = Callable[..., Running]
ASK: Any = {"model": "assistant", "messages": [{"role": "user", "content": "Hi"}]}


def client(running: Running, **settings: Any) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{running.url}/v1", api_key=settings.pop("api_key", "none"), max_retries=0, **settings
    )


def post(running: Running, body: Any = None, **settings: Any) -> httpx.Response:
    return httpx.post(f"{running.url}/v1/chat/completions", json=body or ASK, timeout=30, **settings)


def test_openais_client_reads_a_whole_answer_which_is_logged_by_its_id(serving: Start) -> None:
    running = serving()
    answer = client(running).chat.completions.create(**ASK, extra_headers={"x-request-id": "order-1"})
    assert answer.choices[0].message.content == "Hello there."
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.id, answer._request_id, answer.model) == ("order-1", "order-1", "models:/assistant/1")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (7, 3, 10)
    ((interaction, feedback),) = running.logged()
    assert (interaction.id, interaction.answers[0].text, feedback) == ("order-1", "Hello there.", ())


def test_openais_client_reads_a_stream_with_usage(serving: Start) -> None:
    running = serving()
    asked = client(running).chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True})
    chunks = list(asked)
    deltas = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert deltas == ["", "Hello", " there", ".", None]
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 3
    assert len({chunk.id for chunk in chunks}) == 1
    raw = post(running, {**ASK, "stream": True}).text
    assert raw.endswith("data: [DONE]\n\n")
    assert '"usage"' not in raw


def test_settings_reach_the_backend(serving: Start) -> None:
    backend = Scripted()
    client(serving(backend)).chat.completions.create(
        **ASK, temperature=0.5, top_p=0.9, max_completion_tokens=5, stop=["x", "y"], seed=3, user="u1", n=1
    )
    (asked,) = backend.asked
    assert (asked.temperature, asked.top_p, asked.max_tokens, asked.seed) == (0.5, 0.9, 5, 3)
    assert (asked.stop, asked.user) == (("x", "y"), "u1")


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({"n": 2}, "n"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"temprature": 1}, "temprature"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"seed": 1.5}, "seed"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": {"user": 1}, "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0]"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(serving: Start, changed: dict[str, Any], param: str) -> None:
    answer = post(serving(), {**ASK, **changed})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)


@pytest.mark.slow
def test_abuse_is_refused_and_the_server_goes_on(serving: Start) -> None:
    running = serving(limits={"body_bytes": 2048})
    url = f"{running.url}/v1/chat/completions"
    assert httpx.post(url, content=b"{").json()["error"]["code"] == "invalid_json"
    assert httpx.post(url, content=b"[" * 2000).status_code == 400
    assert httpx.post(url, content=b"\xff\xfe").status_code == 400
    assert httpx.post(url, content=b"x" * 4096).status_code == 413
    assert httpx.post(url, content=iter([b"x" * 1500] * 3)).status_code == 413  # no length told before
    assert post(running, headers={"x-request-id": "../../etc"}).status_code == 400
    assert post(running, {**ASK, "model": "gpt-4"}).json()["error"]["code"] == "model_not_found"
    assert httpx.get(f"{running.url}/v1/nothing").json()["error"]["type"] == "not_found_error"
    assert httpx.get(url).status_code == 405
    assert post(running).status_code == 200
    assert running.service.in_flight == 0


def test_a_body_that_never_ends_is_cut_off(serving: Start) -> None:
    running = serving(limits={"body_s": 0.2})
    with socket.create_connection(("127.0.0.1", int(running.url.rsplit(":", 1)[1])), timeout=20) as raw:
        raw.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        assert b"408" in raw.recv(4096).split(b"\r\n")[0]


@pytest.mark.slow
def test_a_token_is_asked_for(serving: Start) -> None:
    running = serving(token="secret")
    with pytest.raises(openai.AuthenticationError):
        client(running, api_key="guess").models.list()
    assert [model.id for model in client(running, api_key="secret").models.list()] == [
        "assistant",
        "models:/assistant/1",
    ]
    assert post(running).status_code == 401
    assert httpx.post(f"{running.url}/v1/interactions/x/feedback", json={"kind": "click"}).status_code == 401
    assert httpx.get(f"{running.url}/healthz").json()["status"] == "ok"


def test_more_than_the_bound_is_told_to_come_back(serving: Start) -> None:
    gate = threading.Event()
    running = serving(Scripted(gate=gate), limits={"in_flight": 1})
    first = threading.Thread(target=post, args=(running,))
    first.start()
    wait_for(lambda: running.service.in_flight == 1, "the first request")
    second = post(running)
    assert (second.status_code, second.headers["retry-after"]) == (429, "1")
    assert second.json()["error"]["type"] == "rate_limit_error"
    gate.set()
    first.join()
    wait_for(lambda: running.service.in_flight == 0, "the first request to end")
    assert post(running).status_code == 200


def test_a_client_that_leaves_ends_the_work_and_is_no_error_of_the_model(serving: Start) -> None:
    backend = Scripted(words=["word "] * 2000, pause_s=0.01)
    running = serving(backend)
    with httpx.stream("POST", f"{running.url}/v1/chat/completions", json={**ASK, "stream": True}) as answer:
        next(answer.iter_bytes())
    wait_for(lambda: backend.cancelled == 1, "the work to end")
    assert backend.said < 1500
    wait_for(lambda: running.service.in_flight == 0, "the place to be free")
    wait_for(lambda: len(running.logged()) == 1, "the log")
    ((interaction, _),) = running.logged()
    assert (interaction.answers[0].finish_reason, interaction.answers[0].error) == ("error", "the client left")


@pytest.mark.slow
def test_a_slow_reader_holds_up_nobody_and_is_cut_off(serving: Start) -> None:
    running = serving(Scripted(words=["x" * 20_000] * 500, lanes=1), limits={"answer_s": 1.0})
    body = json.dumps({**ASK, "stream": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", int(running.url.rsplit(":", 1)[1]))) as raw:
        raw.sendall(head + body)
        wait_for(lambda: running.service.in_flight == 1, "the slow reader")
        assert post(running).status_code == 200  # one lane: it is free although the first answer is unread
        wait_for(lambda: running.service.in_flight == 0, "the slow reader to be cut off")


def test_an_error_of_the_backend_is_told_and_logged(serving: Start) -> None:
    running = serving(Scripted(fails=BackendError("no room", status=400, code="context_length_exceeded")))
    with pytest.raises(openai.BadRequestError, match="no room"):
        client(running).chat.completions.create(**ASK)
    answer = post(running, {**ASK, "stream": True})  # before the first piece: a status can still say it
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert [item.answers[0].error for item, _ in running.logged()] == ["no room", "no room"]


@pytest.mark.slow
def test_feedback_counts_once_and_names_a_known_request(serving: Start) -> None:
    running = serving()
    name = post(running).headers["x-request-id"]
    url = f"{running.url}/v1/interactions/{name}/feedback"
    for _ in range(2):
        assert httpx.post(url, json={"kind": "thumb_up", "annotator": "ann"}).status_code == 200
    assert httpx.post(url, json={"kind": "deflected"}).status_code == 200
    assert httpx.post(url, json={"kind": "liked"}).status_code == 400
    unknown = httpx.post(f"{running.url}/v1/interactions/nobody/feedback", json={"kind": "click"})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "unknown_request_id")
    ((_, feedback),) = running.logged()
    assert [(item.kind, item.annotator) for item in feedback] == [("thumb_up", "ann"), ("deflected", None)]


def test_a_request_id_that_was_used_gets_an_addition(serving: Start) -> None:
    running = serving()
    names = [post(running, headers={"x-request-id": "same"}).headers["x-request-id"] for _ in range(2)]
    assert names[0] == "same"
    assert names[1].startswith("same.")
    assert sorted(item.id for item, _ in running.logged()) == sorted(names)


def test_health_says_starting_without_a_version(serving: Start) -> None:
    running = serving()
    running.service.parts.champion.clear()
    running.registry.aliases["champion"] = None
    wait_for(lambda: running.service.parts.champion.uri is None, "the slot to be empty")
    health = httpx.get(f"{running.url}/healthz")
    assert (health.status_code, health.json()["status"]) == (503, "starting")
    assert post(running).status_code == 503


@pytest.mark.slow
def test_a_version_that_hangs_is_an_error_of_its_own_not_a_reader_who_left(serving: Start) -> None:
    gate = threading.Event()
    running = serving(Scripted(gate=gate), limits={"answer_s": 0.3})
    assert post(running).status_code == 504
    assert post(running, {**ASK, "stream": True}).status_code == 504
    assert [item.answers[0].error for item, _ in running.logged()] == ["the answer took more than 0.3 s"] * 2
    gate.set()


def test_an_answer_that_could_not_be_kept_is_told(serving: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    running = serving()

    def broken(_: Any) -> bool:
        raise RuntimeError("no memory")

    monkeypatch.setattr(running.service.parts.writer, "put", broken)
    assert post(running).status_code == 200
    wait_for(lambda: running.service.lost == 1, "the loss")
    health = httpx.get(f"{running.url}/healthz").json()
    assert (health["status"], health["log"]["lost"]) == ("alert", 1)
    assert "no memory" in health["alerts"][0]
