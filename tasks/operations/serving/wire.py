"""OpenAI's chat protocol, as bytes: requests read and refused in its words, answers in its shapes.

What is not supported is refused by name, unless it is given the value that means "off": nothing is ignored silently.
"""

from __future__ import annotations

import hmac
import re
import time
import uuid
from collections.abc import Mapping
from typing import Any, get_args

import orjson

from plumbline.data_contracts.records import Message, Role
from plumbline.tasks.operations.serving.chat import BackendError, ChatRequest
from plumbline.tasks.operations.serving.collect import Collected
from plumbline.tasks.params.serving import RateLimitParams

DONE = b"data: [DONE]\n\n"

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,159}")
_NUMBERS: Mapping[str, tuple[float, float]] = {"temperature": (0, 2), "top_p": (0, 1)}
_OFF: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "store": (False,),
    "metadata": ({},),
    "service_tier": ("auto", "default"),
}
_TAKEN = {
    *("model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "stop", "seed", "user"),
    *("stream", "stream_options"),
}
_MOST_STOPS = 4
_LONGEST_STOP = 200
_ROLES: Mapping[str, Role] = {**{role: role for role in get_args(Role)}, "developer": "system"}


class ServingRefusal(Exception):
    """A request that is not answered: HTTP status and OpenAI's error object."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None, param: str | None = None, retry: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = {} if retry is None else {"Retry-After": str(retry)}
        if status == 401:
            self.headers["WWW-Authenticate"] = "Bearer"

    def body(self) -> dict[str, Any]:
        """The JSON object."""
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def refusal_of(error: BackendError, retry: int) -> ServingRefusal:
    """A backend's refusal as the user reads it."""
    return ServingRefusal(
        error.status, str(error), code=error.code, retry=retry if error.status in (429, 503) else None
    )


def check_token(expected: str | None, header: str | None) -> None:
    """Raise `ServingRefusal` (401) unless the header carries the token; compared in constant time."""
    if expected is None:
        return
    scheme, _, given = (header or "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), expected.encode()):
        raise ServingRefusal(401, "Expected a valid token: Authorization: Bearer TOKEN.", code="invalid_api_key")


def request_id_of(header: str | None) -> str:
    """The caller's request id, or a new one. Raises `ServingRefusal` for one that is no plain name."""
    if header is None:
        return f"chatcmpl-{uuid.uuid4().hex}"
    if not _ID.fullmatch(header):
        raise ServingRefusal(
            400,
            "x-request-id: expected up to 160 letters, digits or . _ : -, beginning with a letter or digit.",
            code="invalid_request_id",
            param="x-request-id",
        )
    return header


def parse_object(data: bytes) -> dict[str, Any]:
    """A body's JSON object. Raises `ServingRefusal`."""
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise ServingRefusal(400, f"The body is not JSON: {error}.", code="invalid_json") from error
    if not isinstance(body, dict):
        raise ServingRefusal(400, "Expected the body to be a JSON object.", code="invalid_json")
    return body


def parse_chat(data: bytes, limits: RateLimitParams) -> ChatRequest:
    """A chat request from its body. Raises `ServingRefusal` naming the parameter."""
    body = {name: value for name, value in parse_object(data).items() if value is not None}
    _refuse_unsupported(body)
    options = body.get("stream_options", {})
    if not isinstance(options, dict) or set(options) - {"include_usage"}:
        raise _bad("stream_options", "an object with include_usage")
    stream = _flag(body, "stream")
    if options and not stream:
        raise _bad("stream_options", "stream: true beside it")
    return ChatRequest(
        messages=_messages(body.get("messages"), limits.messages),
        max_tokens=_tokens(body),
        temperature=_number(body, "temperature"),
        top_p=_number(body, "top_p"),
        stop=_stops(body.get("stop", [])),
        seed=_seed(body),
        user=_text(body, "user"),
        model=_text(body, "model"),
        stream=stream,
        include_usage=_flag(options, "include_usage"),
    )


def completion(name: str, model: str, answer: Collected, created: int) -> dict[str, Any]:
    """The body of an answer that was not streamed."""
    message = {"role": "assistant", "content": answer.text, "refusal": None}
    choice = {"index": 0, "message": message, "finish_reason": answer.finish, "logprobs": None}
    return {**_head(name, model, "chat.completion", created), "choices": [choice], "usage": _usage(answer)}


def chunk(name: str, model: str, created: int, delta: Mapping[str, str], finish: str | None = None) -> bytes:
    """One event of a streamed answer."""
    choice = {"index": 0, "delta": dict(delta), "finish_reason": finish, "logprobs": None}
    return event({**_head(name, model, "chat.completion.chunk", created), "choices": [choice]})


def usage_chunk(name: str, model: str, created: int, answer: Collected) -> bytes:
    """The event with what the answer took, after the last choice."""
    return event({**_head(name, model, "chat.completion.chunk", created), "choices": [], "usage": _usage(answer)})


def event(body: Mapping[str, Any]) -> bytes:
    """An object as a server-sent event."""
    return b"data: " + orjson.dumps(body) + b"\n\n"


def now() -> int:
    """Seconds since 1970."""
    return int(time.time())


def _head(name: str, model: str, kind: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": kind, "created": created, "model": model}


def _usage(answer: Collected) -> dict[str, int]:
    total = answer.prompt_tokens + answer.tokens
    return {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.tokens, "total_tokens": total}


def _refuse_unsupported(body: Mapping[str, Any]) -> None:
    for name, value in body.items():
        if name in _TAKEN or value in _OFF.get(name, ()):
            continue
        known = f"only {' or '.join(map(repr, _OFF[name]))}" if name in _OFF else "it is not known here"
        raise ServingRefusal(400, f"{name} is not supported: {known}.", code="unsupported_parameter", param=name)


def _messages(given: Any, most: int) -> tuple[Message, ...]:
    if not isinstance(given, list) or not 1 <= len(given) <= most:
        raise _bad("messages", f"a list of 1 to {most} messages")
    return tuple(_message(item, f"messages[{place}]") for place, item in enumerate(given))


def _message(item: Any, place: str) -> Message:
    if not isinstance(item, dict) or not isinstance(item.get("role"), str) or item["role"] not in _ROLES:
        raise _bad(f"{place}.role", f"one of {', '.join(_ROLES)}")
    if unknown := sorted(name for name, value in item.items() if name not in ("role", "content", "name") and value):
        raise ServingRefusal(400, f"{place}.{unknown[0]} is not supported.", code="unsupported_parameter", param=place)
    content = item.get("content")
    if isinstance(content, list):
        if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
            raise ServingRefusal(
                400, f"{place}.content: only text is supported.", code="unsupported_content", param=place
            )
        content = "".join(part["text"] if isinstance(part.get("text"), str) else "" for part in content)
    if not isinstance(content, str):
        raise _bad(f"{place}.content", "a string, or a list of text parts")
    if any("\ud800" <= character <= "\udfff" for character in content):
        raise _bad(f"{place}.content", "text without lone surrogates")
    return Message(role=_ROLES[item["role"]], content=content)


def _tokens(body: Mapping[str, Any]) -> int | None:
    given = {name: body[name] for name in ("max_completion_tokens", "max_tokens") if name in body}
    for name, value in given.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise _bad(name, "a whole number of 1 or more")
    return next(iter(given.values()), None)


def _number(body: Mapping[str, Any], name: str) -> float | None:
    value = body.get(name)
    if value is None:
        return None
    low, high = _NUMBERS[name]
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise _bad(name, f"a number from {low:g} to {high:g}")
    if name == "top_p" and value == 0:
        raise _bad(name, "a number above 0; for the likeliest token set temperature to 0")
    return float(value)


def _stops(given: Any) -> tuple[str, ...]:
    stops = [given] if isinstance(given, str) else given
    sound = isinstance(stops, list) and len(stops) <= _MOST_STOPS
    if not sound or not all(isinstance(stop, str) and 0 < len(stop) <= _LONGEST_STOP for stop in stops):
        raise _bad("stop", f"a string, or up to {_MOST_STOPS}, of 1 to {_LONGEST_STOP} characters")
    return tuple(stops)


def _seed(body: Mapping[str, Any]) -> int | None:
    seed = body.get("seed")
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool) or abs(seed) >= 2**63):
        raise _bad("seed", "a whole number of 64 bits")
    return seed


def _text(body: Mapping[str, Any], name: str) -> str | None:
    value = body.get(name)
    if value is not None and (not isinstance(value, str) or len(value) > 512):
        raise _bad(name, "a string of at most 512 characters")
    return value


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name, False)
    if not isinstance(value, bool):
        raise _bad(name, "true or false")
    return value


def _bad(name: str, expected: str) -> ServingRefusal:
    return ServingRefusal(400, f"{name}: expected {expected}.", code="invalid_value", param=name)
