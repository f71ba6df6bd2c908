"""Checks in front of an HTTP application (ASGI): its Host, the Origin of a page, credentials, and proof of who it is.

A bind to loopback is no access control: every user of the machine reaches it, and so does every page in a browser.

- Host: starlette's `TrustedHostMiddleware`. A name that an attacker points at 127.0.0.1 (DNS rebinding) is refused.
- Origin: a page of another origin is refused, also where a browser would not ask first (a form, an image, a WebSocket).
  No answer carries a CORS header of ours.
- Credentials: HTTP's basic scheme, for an application that asks for none itself.
- Proof: `GET /.well-known/plumbline?nonce=N` answers an HMAC that only a holder of the secret can compute. So a client
  knows that it talks to its own server before it sends a credential. It covers the port: it cannot be relayed.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import re
from collections.abc import Collection, Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, QueryParams
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")
PROOF_PATH = "/.well-known/plumbline"

_NONCE = re.compile(r"[0-9a-f]{32,128}")
_ANY_ADDRESS = ("0.0.0.0", "::")
_POLICY_VIOLATION = 1008  # RFC 6455
_SHOWN = 200
_logger = logging.getLogger("plumbline.access")


def checked(
    app: ASGIApp, *, host: str, allowed_hosts: Sequence[str] = (), allowed_origins: Collection[str] = ()
) -> ASGIApp:
    """The application behind the checks of Host and Origin.

    `host` is the address that it listens on. Loopback's names and that address are allowed beside `allowed_hosts`
    (names without a port, `*.example.com`, or `*` for any); origins are `scheme://host[:port]`, or `*` for any.
    """
    own = () if host in _ANY_ADDRESS else (f"[{host}]" if ":" in host else host,)
    hosts = dict.fromkeys([*LOOPBACK_NAMES, *own, *allowed_hosts])
    return TrustedHostMiddleware(OwnOrigins(app, allowed_origins), allowed_hosts=list(hosts), www_redirect=False)


class OwnOrigins:
    """ASGI middleware: a request that a page of another origin sent is refused.

    A page's own origin is the Host that it asks. Without an Origin header (no browser, or a plain GET) what the browser
    says of the site decides: a cross-site request is taken only where a person follows a link.
    """

    def __init__(self, app: ASGIApp, allowed: Collection[str] = ()) -> None:
        self._app = app
        self._allowed = {origin.rstrip("/").lower() for origin in allowed}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] not in ("http", "websocket") or self._is_own(Headers(scope=scope), scope.get("method", "GET")):
            await self._app(scope, receive, send)
            return
        _logger.warning("refused a request of another origin: %r", Headers(scope=scope).get("origin", "none")[:_SHOWN])
        message = "a page of another origin may not ask here. Allow it in params (allowed_origins) if it is yours."
        await _refuse(scope, receive, send, 403, "foreign_origin", message)

    def _is_own(self, headers: Headers, method: str) -> bool:
        origins = headers.getlist("origin")
        if "*" in self._allowed:
            return True
        if origins:
            return len(origins) == 1 and self._fits(origins[0].lower(), headers.get("host", "").lower())
        if headers.get("sec-fetch-site", "none") in ("none", "same-origin"):
            return True
        followed = (headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")) == ("navigate", "document")
        return method == "GET" and followed

    def _fits(self, origin: str, host: str) -> bool:
        return origin in self._allowed or urlsplit(origin).netloc == host != ""


class BasicCredentials:
    """ASGI middleware: every request but a look at the health must carry `user:password` by HTTP's basic scheme."""

    def __init__(self, app: ASGIApp, credentials: str, open_paths: Collection[str] = ()) -> None:
        self._app = app
        self._expected = credentials.encode()
        self._open = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] not in ("http", "websocket") or self._may(scope):
            await self._app(scope, receive, send)
            return
        challenge = {"WWW-Authenticate": 'Basic realm="plumbline", charset="UTF-8"'}
        message = "expected the credentials that `plumbline status --credentials` shows."
        await _refuse(scope, receive, send, 401, "unauthorized", message, challenge)

    def _may(self, scope: Scope) -> bool:
        if scope["type"] == "http" and scope["path"] in self._open and scope["method"] in ("GET", "HEAD"):
            return True
        scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        try:
            presented = base64.b64decode(given.strip(), validate=True)
        except ValueError:
            return False
        return scheme.lower() == "basic" and hmac.compare_digest(presented, self._expected)


class Proving:
    """ASGI middleware: answers `PROOF_PATH`, for clients that hold the same secret."""

    def __init__(self, app: ASGIApp, secret: str, port: int) -> None:
        self._app = app
        self._secret = secret
        self._port = port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["path"] != PROOF_PATH:
            await self._app(scope, receive, send)
            return
        nonce = QueryParams(scope.get("query_string", b"")).get("nonce", "")
        if _NONCE.fullmatch(nonce):
            await JSONResponse({"proof": proof(self._secret, nonce, self._port)})(scope, receive, send)
        else:
            message = "nonce: expected 32 to 128 hexadecimal digits."
            await _refuse(scope, receive, send, 400, "nonce", message)


def proof(secret: str, nonce: str, port: int) -> str:
    """The answer of a server at a port to a nonce."""
    told = f"plumbline server\n{port}\n{nonce}".encode()
    return hmac.new(secret.encode(), told, hashlib.sha256).hexdigest()


def basic(credentials: str) -> dict[str, str]:
    """The header of `user:password` in HTTP's basic scheme."""
    return {"Authorization": f"Basic {base64.b64encode(credentials.encode()).decode()}"}


async def _refuse(
    scope: Scope,
    receive: Receive,
    send: Send,
    status: int,
    code: str,
    message: str,
    headers: dict[str, str] | None = None,
) -> None:
    if scope["type"] == "websocket":
        await receive()  # websocket.connect
        await send({"type": "websocket.close", "code": _POLICY_VIOLATION, "reason": code})
        return
    body = json.dumps({"error": {"code": code, "message": message}}).encode()
    await Response(body, status, headers, "application/json")(scope, receive, send)
