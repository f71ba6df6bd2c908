"""A log line and an id for every request, and an answer without a stack trace when something breaks."""

from __future__ import annotations

import logging
import time
import uuid

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_logger = logging.getLogger("plumbline.intake")
_LONGEST_PATH = 120


class RequestLog:
    """ASGI middleware. The id is ours, never the client's: a line of the log cannot be forged."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, request_id = time.monotonic(), str(uuid.uuid4())
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        status = 0

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        except Exception as error:
            # Only the kind: a message may quote what was sent.
            _logger.error("request %s broke: %s", request_id, type(error).__name__, exc_info=_logger.isEnabledFor(10))
            if status == 0:
                await _apologise(send_and_note)
        finally:
            _write(scope, request_id, status, 1000 * (time.monotonic() - began))


async def _apologise(send: Send) -> None:
    error = {"code": "internal", "message": "the request could not be served; the server's log has its id."}
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 500, "headers": headers})
    await send({"type": "http.response.body", "body": orjson.dumps({"error": error})})


def _write(scope: Scope, request_id: str, status: int, took_ms: float) -> None:
    state = scope["state"]
    line = {
        "request_id": request_id,
        "method": scope["method"],
        "path": scope["path"][:_LONGEST_PATH],  # without the query; JSON escapes what could forge a line
        "status": status,
        "ms": round(took_ms, 1),
        "client": state.get("client"),
        "accepted": state.get("rows"),
    }
    _logger.info("%s", orjson.dumps(line).decode())
