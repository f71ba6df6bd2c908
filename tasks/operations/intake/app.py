"""The HTTP endpoint: `POST /v1/feedback/{source}` and `GET /healthz`.

A request is refused as early as it can be: token, kind of feedback, rate, media type, size, JSON, contract.
A 202 means that its accepted rows are on disk. No answer holds a stack trace, no log line a token or a row.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

import orjson
from fastapi import FastAPI, Path, Request, Response, Security
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from plumbline.data_contracts.errors import OperationsError
from plumbline.tasks.operations.intake.bodies import (
    BodyRefusal,
    BodyRow,
    Shape,
    check_types,
    parse_rows,
    unzip,
    unzipped_most,
)
from plumbline.tasks.operations.intake.limits import Memory, Rate, busy, drain, read_body
from plumbline.tasks.operations.intake.log import RequestLog
from plumbline.tasks.operations.intake.openapi import REQUEST, RESPONSES, RowVerdicts
from plumbline.tasks.operations.intake.tokens import Grant, Grants
from plumbline.tasks.operations.intake.writer import SpoolWriter, Submission
from plumbline.tasks.params.intake import IntakeParams

_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_INLINE_BYTES = 65_536  # a body up to this is parsed at once: handing it to a thread costs more
_logger = logging.getLogger("plumbline.intake")


@dataclass(slots=True)
class Endpoint:
    """The parts that take a request, and its bounds."""

    writer: SpoolWriter
    grants: Grants
    params: IntakeParams
    sources: Collection[str]
    free_bytes: Callable[[], int]
    rate: Rate
    memory: Memory
    working: int = 0


def create_app(
    writer: SpoolWriter,
    grants: Grants,
    params: IntakeParams,
    *,
    sources: Collection[str],
    free_bytes: Callable[[], int],
) -> FastAPI:
    """The application. `free_bytes` tells the free space of the disk that the spool is on."""
    rate, memory = Rate(params.requests_per_s), Memory(params.max_held_bytes)
    endpoint = Endpoint(writer, grants, params, tuple(sources), free_bytes, rate, memory)
    # The pages of documentation load scripts from elsewhere; the document itself is at /openapi.json.
    app = FastAPI(title="Plumbline feedback", version="1", docs_url=None, redoc_url=None)

    kinds = Path(json_schema_extra={"enum": sorted(sources)})

    @app.post(
        "/v1/feedback/{source}",
        status_code=202,
        response_model=RowVerdicts,
        response_description="The accepted rows are on disk",
        responses=RESPONSES,
        openapi_extra=REQUEST,
        dependencies=[Security(HTTPBearer(scheme_name="bearer", auto_error=False))],
    )
    async def feedback(request: Request, source: str = kinds) -> Response:
        """Hand in feedback of one kind. 202 once the accepted rows are safe on disk."""
        return await _serve(endpoint, source, request)

    @app.get("/healthz", response_description="It takes requests", responses={507: {"description": "The disk is full"}})
    async def healthz() -> Response:
        """Answer that the endpoint takes requests, or that it does not."""
        full = endpoint.free_bytes() < params.min_free_bytes
        return _json(507 if full else 200, {"status": "disk_full" if full else "ok", "working": endpoint.working})

    app.add_exception_handler(HTTPException, _http_error)
    app.add_middleware(RequestLog)
    return app


async def _serve(endpoint: Endpoint, source: str, request: Request) -> Response:
    try:
        grant = _enter(endpoint, source, request)
        if endpoint.working >= endpoint.params.max_waiting:
            raise busy(1.0, "too many requests at a time")
        endpoint.working += 1
        try:
            return await _take(endpoint, source, grant, request)
        finally:
            endpoint.working -= 1
    except BodyRefusal as refusal:
        await _drain(request)
        return _refused(refusal)
    except OperationsError as error:
        return _refused(_broken(error))


def _enter(endpoint: Endpoint, source: str, request: Request) -> Grant:
    """Everything that can be known before the body is read."""
    grant = endpoint.grants.find(request.headers.get("authorization"))
    if grant is None:
        challenge = {"WWW-Authenticate": 'Bearer realm="plumbline"'}
        raise BodyRefusal(401, "unauthorized", "expected Authorization: Bearer with a valid token.", headers=challenge)
    request.state.client = grant.name
    if source not in endpoint.sources:
        raise BodyRefusal(404, "unknown_source", f"unknown kind of feedback; expected {', '.join(endpoint.sources)}.")
    if not grant.allows(source):
        raise BodyRefusal(403, "forbidden", f"this token may not send {source}.")
    wait_s = endpoint.rate.wait_s(grant.name)
    if wait_s > 0:
        raise busy(wait_s, "too many requests per second")
    if endpoint.free_bytes() < endpoint.params.min_free_bytes:
        raise BodyRefusal(507, "disk_full", "the disk is full, nothing was taken. Send it again later.")
    return grant


async def _take(endpoint: Endpoint, source: str, grant: Grant, request: Request) -> Response:
    headers, params = request.headers, endpoint.params
    media, zipped = check_types(headers.get("content-type"), headers.get("content-encoding"))
    key = headers.get("idempotency-key")
    if key is None or not _KEY.fullmatch(key):
        found = "none." if key is None else "another."
        told = f"expected an Idempotency-Key header of 1 to 255 visible ASCII characters, found {found}"
        raise BodyRefusal(400, "idempotency_key", told, field="Idempotency-Key")
    with endpoint.memory.share() as take:
        limit, declared = params.max_body_bytes, headers.get("content-length")
        sent = await read_body(request.stream(), declared, limit, params.read_timeout_s, take)
        if zipped:
            take(unzipped_most(len(sent), params.max_decoded_bytes))
        if zipped or len(sent) > _INLINE_BYTES:
            digest, rows = await asyncio.to_thread(_rows, sent, media, zipped, params)
        else:
            digest, rows = _rows(sent, media, zipped, params)
        answer = await asyncio.wrap_future(endpoint.writer.submit(Submission(grant.name, source, key, digest, rows)))
    request.state.rows = answer.body["accepted"]
    response = _json(answer.status, {**answer.body, "request_id": request.state.request_id})
    if answer.replayed:
        response.headers["Idempotent-Replayed"] = "true"
    return response


def _rows(sent: bytes, media: str, zipped: bool, params: IntakeParams) -> tuple[str, list[BodyRow]]:
    """The digest of what was sent, and its rows."""
    data = unzip(sent, params.max_decoded_bytes) if zipped else sent
    rows = parse_rows(data, media, Shape(params.max_rows, params.max_values, params.max_depth))
    return hashlib.sha256(media.encode() + b"\n" + data).hexdigest(), rows


async def _drain(request: Request) -> None:
    """Read off the rest of a refused body where the connection ends with the answer, which the client then gets.

    Else the answer goes out at once, and the server passes over what still comes.
    """
    if request.headers.get("connection", "").lower() != "close" and request.scope.get("http_version") == "1.1":
        return
    try:
        await drain(request.stream())
    except (ClientDisconnect, RuntimeError):  # the client is gone, or the body was read to its end
        return


def _broken(error: OperationsError) -> BodyRefusal:
    _logger.error("the spool refused: %s", error)
    if "disk is full" in str(error).partition(" Check ")[0]:
        return BodyRefusal(507, "disk_full", "the disk is full, nothing was taken. Send it again later.")
    return BodyRefusal(503, "unavailable", "nothing was taken. Send it again later.", headers={"Retry-After": "5"})


def _refused(refusal: BodyRefusal) -> Response:
    place = {"line": refusal.line, "field": refusal.field}
    error = {"code": refusal.code, "message": refusal.message, **{k: v for k, v in place.items() if v is not None}}
    return _json(refusal.status, {"error": error}, refusal.headers)


def _http_error(_: Request, error: Exception) -> Response:
    """Paths and methods that are not there, in the form of every other error."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    codes = {404: ("not_found", "no such path."), 405: ("method_not_allowed", "no such method here.")}
    code, message = codes.get(status, ("refused", "the request cannot be served."))
    return _refused(BodyRefusal(status, code, message, headers=headers))


def _json(status: int, body: object, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(body), status, headers, "application/json")
