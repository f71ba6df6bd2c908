"""Any server that speaks the protocol as a backend: here a second instance of our own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from plumbline.data_contracts.errors import OperationsError
from plumbline.data_contracts.records import Message
from plumbline.tasks.operations.serving.chat import BackendError, ChatRequest, Piece
from plumbline.tasks.operations.serving.remote_backend import RemoteBackend
from tests.tasks.operations.serving.conftest import Running, Scripted, wait_for
from tests.tasks.operations.serving.test_app import post

Start = Callable[..., Running]
REQUEST = ChatRequest((Message(role="user", content="Hi"),), temperature=0.5, stop=("x",), seed=4, max_tokens=900)


def remote(url: str, model: str = "assistant", **settings: Any) -> RemoteBackend:
    given: dict[str, Any] = {"key": None, "timeout_s": 20, "lanes": 4, "most_tokens": 100, **settings}
    return RemoteBackend(f"{url}/v1", model, **given)


def test_the_answer_passes_through_two_servers(serving: Start) -> None:
    backend = Scripted()
    behind = serving(backend, token="key")
    far = remote(behind.url, key="key")
    far.require_model()
    front = serving(far)
    answer = post(front).json()
    assert answer["choices"][0]["message"]["content"] == "Hello there."
    assert answer["usage"] == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    list(far.pieces(REQUEST, threading.Event()))
    asked = backend.asked[-1]
    assert (asked.temperature, asked.stop, asked.seed, asked.max_tokens) == (0.5, ("x",), 4, 100)


def test_a_cancel_ends_the_work_at_the_far_end(serving: Start) -> None:
    backend = Scripted(words=["word "] * 2000, pause_s=0.01)
    far, cancelled = remote(serving(backend).url), threading.Event()
    pieces: Iterator[Piece] = far.pieces(REQUEST, cancelled)
    next(pieces)
    cancelled.set()
    assert list(pieces) == []
    wait_for(lambda: backend.cancelled == 1, "the far end to stop")


def test_refusals_say_whose_fault_it_is(serving: Start) -> None:
    full = serving(Scripted(fails=BackendError("too long", status=400, code="context_length_exceeded")), token="key")
    for key, status, code in (("key", 400, "context_length_exceeded"), ("wrong", 502, "invalid_api_key")):
        with pytest.raises(BackendError) as refused:
            list(remote(full.url, key=key).pieces(REQUEST, threading.Event()))
        assert (refused.value.status, refused.value.code) == (status, code)
    with pytest.raises(BackendError, match="cannot be reached") as gone:
        list(remote("http://127.0.0.1:9").pieces(REQUEST, threading.Event()))
    assert gone.value.status == 502


def test_a_model_that_the_server_does_not_list_is_not_switched_to(serving: Start) -> None:
    url = serving().url
    with pytest.raises(OperationsError, match=r"'assistant-2', found assistant, models:/assistant/1"):
        remote(url, "assistant-2").require_model()
    with pytest.raises(OperationsError, match="expected a server that lists its models"):
        remote("http://127.0.0.1:9").require_model()


def test_an_answer_that_breaks_off_is_an_error(serving: Start) -> None:
    class Broken(Scripted):
        def pieces(self, request: ChatRequest, cancelled: threading.Event) -> Iterator[Piece]:
            yield Piece("half")
            raise BackendError("the disk is gone")

    with pytest.raises(BackendError, match="the disk is gone"):
        list(remote(serving(Broken()).url).pieces(REQUEST, threading.Event()))
