"""A server that speaks OpenAI's chat protocol as a backend: vLLM, or another Plumbline."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import orjson

from plumbline.data_contracts.errors import OperationsError
from plumbline.tasks.models.chat import as_dicts
from plumbline.tasks.models.chat_server import COMPLETIONS, MODELS, address
from plumbline.tasks.operations.serving.chat import BackendError, ChatRequest, Finish, Piece

_CONNECT_S = 5.0
_FINISH: Mapping[str, Finish] = {"stop": "stop", "length": "length"}
_DATA = "data:"


class RemoteBackend:
    """Requests go to `url`/chat/completions and name `model`; several at one time, because such servers batch."""

    def __init__(
        self, url: str, model: str, *, key: str | None, timeout_s: float, lanes: int, most_tokens: int
    ) -> None:
        self.lanes = lanes
        self._model = model
        self._most = most_tokens
        self._url = url.rstrip("/")
        limits = httpx.Limits(max_connections=lanes, max_keepalive_connections=lanes)
        self._client = httpx.Client(
            **address(url, key),
            timeout=httpx.Timeout(timeout_s, connect=_CONNECT_S),
            limits=limits,
            trust_env=False,
        )

    def require_model(self) -> None:
        """Raise `OperationsError` unless the server answers and lists the model."""
        try:
            answer = self._client.get(MODELS)
            answer.raise_for_status()
            known = [str(item["id"]) for item in orjson.loads(answer.content)["data"]]
        except (httpx.HTTPError, orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise OperationsError(
                f"{self._url}: expected a server that lists its models at /models, found {type(error).__name__}: "
                f"{error}. Start it, or correct the url."
            ) from error
        if self._model not in known:
            raise OperationsError(
                f"{self._url}: expected it to serve the model {self._model!r}, found {', '.join(known[:8]) or 'none'}. "
                "Load that version there under this name (vLLM: --served-model-name), or correct `model`."
            )

    def pieces(self, request: ChatRequest, cancelled: threading.Event) -> Iterator[Piece]:
        """The answer as the server streams it; the connection is closed, and so the work there ended, when cancelled.

        Raises `BackendError`.
        """
        try:
            with self._client.stream("POST", COMPLETIONS, json=self._body(request)) as answer:
                if answer.status_code != 200:
                    raise _refusal(answer)
                yield from _read(answer, cancelled)
        except httpx.TimeoutException as error:
            raise BackendError(f"the backend did not answer in time ({type(error).__name__}).", status=504) from error
        except httpx.HTTPError as error:
            raise BackendError(f"the backend cannot be reached: {type(error).__name__}.") from error

    def alive(self) -> bool:
        """There is nothing to load anew here, whatever happens to the server."""
        return True

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _body(self, request: ChatRequest) -> dict[str, Any]:
        tokens = None if request.max_tokens is None else min(request.max_tokens, self._most)
        body = {
            "model": self._model,
            "messages": as_dicts(request.messages),
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "stop": list(request.stop) or None,
            "seed": request.seed,
        }
        return {name: value for name, value in body.items() if value is not None}


def _read(answer: httpx.Response, cancelled: threading.Event) -> Iterator[Piece]:
    finish: Finish | None = None
    usage: Mapping[str, int] = {}
    for line in answer.iter_lines():
        if cancelled.is_set():
            return
        if not line.startswith(_DATA):
            continue
        data = line.removeprefix(_DATA).strip()
        if data == "[DONE]":
            break
        event = _event(data)
        usage = event.get("usage") or usage
        for choice in event.get("choices") or []:
            if text := (choice.get("delta") or {}).get("content"):
                yield Piece(text)
            finish = _FINISH.get(choice.get("finish_reason") or "", finish)
    if finish is None:
        raise BackendError("the backend's answer broke off before its end.")
    yield Piece("", finish, int(usage.get("prompt_tokens", 0)), int(usage.get("completion_tokens", 0)))


def _event(data: str) -> dict[str, Any]:
    try:
        event: dict[str, Any] = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise BackendError("the backend sent an event that is not JSON.") from error
    if "error" in event:
        raise BackendError(f"the backend failed: {str(event['error'])[:300]}")
    return event


def _refusal(answer: httpx.Response) -> BackendError:
    """A refusal of the request is passed on; one of us (key, model) is the server's business, not the user's."""
    answer.read()
    try:
        told = orjson.loads(answer.content)["error"]
        message, code = str(told["message"])[:500], str(told.get("code") or "backend_error")
    except (orjson.JSONDecodeError, KeyError, TypeError):
        message, code = answer.text[:200], "backend_error"
    if answer.status_code == 400:
        return BackendError(message, status=400, code=code)
    status = answer.status_code if answer.status_code in (429, 503) else 502
    return BackendError(f"the backend refused with {answer.status_code}: {message}", status=status, code=code)
