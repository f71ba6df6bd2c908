"""The HTTP of serving: OpenAI's chat endpoint, its list of models, health, and feedback on answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, get_args

from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Send

from plumbline.data_contracts.errors import PlumblineError
from plumbline.data_contracts.interactions import FeedbackKind, InteractionFeedback
from plumbline.tasks.operations.serving import wire
from plumbline.tasks.operations.serving.chat import BackendError, Piece
from plumbline.tasks.operations.serving.service import ChatService, Exchange
from plumbline.tasks.operations.serving.wire import ServingRefusal

_KINDS = get_args(FeedbackKind)
_REMEMBERED = 10_000


def create_app(service: ChatService, *, model_name: str, token: str | None) -> FastAPI:
    """The application around a service, which it starts, and closes in order when the server ends."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        service.draining = True
        await asyncio.to_thread(service.close)

    app = FastAPI(title="Plumbline serving", lifespan=lifespan, docs_url=None, redoc_url=None)
    routes = _Routes(service, model_name, token)
    for path, method, endpoint in (
        ("/v1/chat/completions", "POST", routes.chat),
        ("/v1/models", "GET", routes.models),
        ("/v1/interactions/{request_id}/feedback", "POST", routes.feedback),
        ("/healthz", "GET", routes.health),
    ):
        app.add_api_route(path, endpoint, methods=[method], response_model=None)
    app.add_exception_handler(ServingRefusal, _refused)
    app.add_exception_handler(404, _not_found)
    app.add_exception_handler(405, _not_found)
    app.add_exception_handler(PlumblineError, _failed)
    return app


class _Routes:
    """The endpoints."""

    def __init__(self, service: ChatService, model_name: str, token: str | None) -> None:
        self._service = service
        self._limits = service.params.limits
        self._model_name = model_name
        self._token = token
        self._ids: dict[str, None] = {}

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        wire.check_token(self._token, request.headers.get("authorization"))
        name = self._unused(wire.request_id_of(request.headers.get("x-request-id")))
        chat = wire.parse_chat(await self._body(request), self._limits)
        self._admit()
        self._service.in_flight += 1
        answering = False
        try:
            self._check_model(chat.model)
            exchange = self._begin(name, chat)
            pieces = self._service.pieces(exchange)
            first = await _first(pieces, request, self._limits.answer_s, self._limits.retry_after_s)
            if not chat.stream:
                return await self._whole(exchange, first, pieces, request)
            answering = True
            return _EventStream(self._events(exchange, first, pieces), self._limits.answer_s, self._left, name)
        finally:
            if not answering:
                self._left()

    async def models(self, request: Request) -> Response:
        """GET /v1/models: the registered name, and the version that answers under it now."""
        wire.check_token(self._token, request.headers.get("authorization"))
        names = [self._model_name, *filter(None, [self._service.parts.champion.uri])]
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "plumbline"} for name in names]
        return JSONResponse({"object": "list", "data": data})

    async def feedback(self, request: Request, request_id: str) -> Response:
        """POST /v1/interactions/{request_id}/feedback."""
        wire.check_token(self._token, request.headers.get("authorization"))
        body = wire.parse_object(await self._body(request))
        kind, annotator = body.get("kind"), body.get("annotator")
        if kind not in _KINDS or set(body) - {"kind", "annotator"}:
            raise ServingRefusal(400, f"Expected kind, one of {', '.join(_KINDS)}, and annotator.", param="kind")
        if annotator is not None and (not isinstance(annotator, str) or not 0 < len(annotator) <= 200):
            raise ServingRefusal(400, "annotator: expected a string of 1 to 200 characters.", param="annotator")
        given = InteractionFeedback(
            request_id=request_id[:200], kind=kind, at=self._service.parts.clock(), annotator=annotator
        )
        if len(request_id) > 200 or not await asyncio.to_thread(self._service.add_feedback, given):
            raise ServingRefusal(404, f"No interaction {request_id[:200]!r} was logged.", code="unknown_request_id")
        return JSONResponse({"request_id": request_id, "kind": kind, "kept": True})

    async def health(self) -> Response:
        """GET /healthz: 200 while requests are answered, alerts or not."""
        health = self._service.health()
        return JSONResponse(health, 200 if health["status"] in ("ok", "alert") else 503)

    def _left(self) -> None:
        self._service.in_flight -= 1

    def _admit(self) -> None:
        service, retry = self._service, self._limits.retry_after_s
        if service.draining:
            raise ServingRefusal(503, "The server is ending; ask another one.", code="shutting_down", retry=retry)
        if service.in_flight >= self._limits.in_flight:
            raise ServingRefusal(429, "Too many requests are under way; try again.", code="overloaded", retry=retry)
        if service.params.log.when_full == "refuse" and service.parts.writer.full:
            raise ServingRefusal(503, "Answers cannot be logged at present; try again.", code="log_full", retry=retry)

    def _unused(self, name: str) -> str:
        """The id, with an addition where a request before had it: what is returned is what is logged."""
        if name in self._ids:
            name = f"{name}.{wire.request_id_of(None)[-8:]}"
        self._ids[name] = None
        if len(self._ids) > _REMEMBERED:
            self._ids.pop(next(iter(self._ids)))
        return name

    def _check_model(self, asked: str | None) -> None:
        champion = self._service.parts.champion
        known = {None, self._model_name, f"models:/{self._model_name}@{champion.alias}", champion.uri}
        if asked not in known:
            raise ServingRefusal(
                404,
                f"The model {asked!r} is not served here; ask for {self._model_name!r}.",
                code="model_not_found",
                param="model",
            )

    def _begin(self, name: str, chat: Any) -> Exchange:
        try:
            return self._service.begin(name, chat)
        except BackendError as error:
            raise wire.refusal_of(error, self._limits.retry_after_s) from error

    async def _whole(
        self, exchange: Exchange, first: Piece, pieces: AsyncGenerator[Piece], request: Request
    ) -> Response:
        try:
            async with asyncio.timeout(self._limits.answer_s), aclosing(pieces):
                if first.finish is None:
                    async for _ in pieces:
                        if await request.is_disconnected():
                            return Response(status_code=499)
        except BackendError as error:
            raise wire.refusal_of(error, self._limits.retry_after_s) from error
        except TimeoutError as error:
            raise ServingRefusal(
                504, f"The answer took more than {self._limits.answer_s:g} s.", code="timeout"
            ) from error
        body = wire.completion(exchange.id, exchange.served.uri, exchange.collected, wire.now())
        return JSONResponse(body, headers={"x-request-id": exchange.id})

    async def _events(self, exchange: Exchange, first: Piece, pieces: AsyncGenerator[Piece]) -> AsyncGenerator[bytes]:
        head = (exchange.id, exchange.served.uri, wire.now())
        async with aclosing(pieces):
            yield wire.chunk(*head, {"role": "assistant", "content": ""})
            try:
                if first.text:
                    yield wire.chunk(*head, {"content": first.text})
                if first.finish is None:
                    async for piece in pieces:
                        if piece.text:
                            yield wire.chunk(*head, {"content": piece.text})
            except BackendError as error:
                yield wire.event(wire.refusal_of(error, 1).body())
                return
        yield wire.chunk(*head, {}, exchange.collected.finish)
        if exchange.request.include_usage:
            yield wire.usage_chunk(*head, exchange.collected)
        yield wire.DONE

    async def _body(self, request: Request) -> bytes:
        most = self._limits.body_bytes
        told = request.headers.get("content-length", "0")
        if told.isdigit() and int(told) > most:
            raise _too_large(most)
        data = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_s):
                async for part in request.stream():
                    data += part
                    if len(data) > most:
                        raise _too_large(most)
        except TimeoutError as error:
            raise ServingRefusal(
                408, f"The body did not come within {self._limits.body_s:g} s.", code="timeout"
            ) from error
        return bytes(data)


class _EventStream(StreamingResponse):
    """Server-sent events. However sending ends, the answer behind them ends too."""

    def __init__(
        self, events: AsyncGenerator[bytes], answer_s: float, left: Callable[[], None], request_id: str
    ) -> None:
        headers = {"x-request-id": request_id, "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._events, self._answer_s, self._left = events, answer_s, left

    async def stream_response(self, send: Send) -> None:
        """Send until the end; a reader that takes too long is cut off."""
        try:
            async with asyncio.timeout(self._answer_s):
                await super().stream_response(send)
        except TimeoutError:
            return
        finally:
            self._left()
            await self._events.aclose()


async def _first(pieces: AsyncGenerator[Piece], request: Request, within_s: float, retry: int) -> Piece:
    """The first piece, waited for before a status is sent: a failure until then becomes that status."""
    try:
        async with asyncio.timeout(within_s):
            return await anext(pieces)
    except BackendError as error:
        raise wire.refusal_of(error, retry) from error
    except TimeoutError as error:
        raise ServingRefusal(504, f"No answer began within {within_s:g} s.", code="timeout") from error
    finally:
        if await request.is_disconnected():
            await pieces.aclose()


def _too_large(most: int) -> ServingRefusal:
    return ServingRefusal(413, f"The body is larger than {most} bytes.", code="body_too_large")


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, ServingRefusal)
    return JSONResponse(error.body(), error.status, error.headers)


async def _not_found(request: Request, error: Exception) -> Response:
    status = int(getattr(error, "status_code", 404))
    return JSONResponse(
        ServingRefusal(status, f"{request.method} {request.url.path}: no such endpoint.").body(), status
    )


async def _failed(_: Request, error: Exception) -> Response:
    return JSONResponse(ServingRefusal(503, str(error), code="unavailable", retry=1).body(), 503, {"Retry-After": "1"})
