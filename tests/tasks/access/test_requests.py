"""Host, Origin, credentials and proof, one request at a time; the whole servers: tests/security."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from plumbline.tasks.access.requests import PROOF_PATH, BasicCredentials, Proving, basic, checked, proof

HOST = "127.0.0.1:8800"
NONCE = "0123456789abcdef" * 4


async def _socket(socket: WebSocket) -> None:
    await socket.accept()
    await socket.send_text("open")
    await socket.close()


INNER = Starlette(
    routes=[
        Route("/", lambda _: PlainTextResponse("seen"), methods=["GET", "POST"]),
        Route("/health", lambda _: PlainTextResponse("well"), methods=["GET", "POST"]),
        WebSocketRoute("/socket", _socket),
    ]
)
APP = checked(
    INNER, host="127.0.0.1", allowed_hosts=["*.proxy.example"], allowed_origins=["https://desk.example", "http://a:1/"]
)


def _status(headers: Mapping[str, str], method: str = "GET", app: object = APP) -> int:
    client = TestClient(app, base_url=f"http://{HOST}")  # type: ignore[arg-type]
    return client.request(method, "/", headers=dict(headers)).status_code


@pytest.mark.parametrize(
    ("host", "status"),
    [
        (HOST, 200),
        ("localhost:8800", 200),
        ("LOCALHOST", 200),
        ("[::1]:8800", 200),
        ("a.proxy.example", 200),
        ("evil.example:8800", 400),
        ("127.0.0.1.evil.example", 400),
        ("localhost.evil.example:8800", 400),
        ("10.0.0.1", 400),
        ("", 400),
    ],
)
def test_a_name_that_is_not_ours_is_refused(host: str, status: int) -> None:
    """A page whose name was pointed at 127.0.0.1 asks under that name (DNS rebinding)."""
    assert _status({"Host": host}) == status


@pytest.mark.parametrize(
    ("headers", "method", "status"),
    [
        ({}, "POST", 200),  # no browser
        ({"Origin": f"http://{HOST}"}, "POST", 200),  # its own page
        ({"Origin": f"https://{HOST}"}, "POST", 200),  # its own page, through a proxy with TLS
        ({"Origin": "https://desk.example"}, "POST", 200),
        ({"Origin": "http://A:1"}, "POST", 200),
        ({"Origin": "http://evil.example"}, "GET", 403),
        ({"Origin": "http://evil.example"}, "POST", 403),  # a form: the browser asks nobody first
        ({"Origin": "http://127.0.0.1:9999"}, "POST", 403),  # a page of another user of this machine
        ({"Origin": "http://127.0.0.1"}, "POST", 403),
        ({"Origin": "null"}, "POST", 403),  # a sandboxed frame, a local file
        ({"Origin": ""}, "POST", 403),
        ({"Origin": f"http://{HOST}.evil.example"}, "POST", 403),
        ({"Sec-Fetch-Site": "same-origin"}, "POST", 200),
        ({"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"}, "GET", 200),  # typed by a person
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, "GET", 200),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}, "GET", 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}, "GET", 403),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"}, "GET", 403),  # another port of 127.0.0.1
    ],
)
def test_a_page_of_another_origin_is_refused(headers: dict[str, str], method: str, status: int) -> None:
    assert _status({"Host": HOST, **headers}, method) == status


def test_two_origins_are_none_of_ours() -> None:
    client = TestClient(APP, base_url=f"http://{HOST}")
    found = client.post("/", headers=[("Origin", f"http://{HOST}"), ("Origin", "http://evil.example")])
    assert found.status_code == 403


def test_a_page_of_another_origin_opens_no_websocket() -> None:
    """A browser sends no preflight for a WebSocket."""
    client = TestClient(APP, base_url=f"http://{HOST}")
    with client.websocket_connect("/socket", headers={"Host": HOST, "Origin": f"http://{HOST}"}) as own:
        assert own.receive_text() == "open"
    with (
        pytest.raises(WebSocketDisconnect),
        client.websocket_connect("/socket", headers={"Origin": "http://evil.example"}),
    ):
        pass


def test_every_origin_and_host_is_a_choice() -> None:
    app = checked(INNER, host="0.0.0.0", allowed_hosts=["*"], allowed_origins=["*"])
    assert _status({"Host": "any.example", "Origin": "http://evil.example"}, "POST", app) == 200
    bound = checked(INNER, host="10.1.2.3")
    assert (_status({"Host": "10.1.2.3"}, app=bound), _status({"Host": "10.1.2.4"}, app=bound)) == (200, 400)
    everywhere = checked(INNER, host="0.0.0.0")
    assert _status({"Host": "0.0.0.0"}, app=everywhere) == 400


def test_credentials_are_asked_for_everywhere_but_at_the_health() -> None:
    client = TestClient(BasicCredentials(INNER, "user:pass:word", ["/health"]), base_url=f"http://{HOST}")
    assert client.get("/").status_code == 401
    assert client.get("/").headers["www-authenticate"].startswith("Basic ")
    assert client.get("/", headers=basic("user:pass:word")).text == "seen"
    assert client.get("/health").text == "well"
    wrong: list[dict[str, str]] = [
        basic("user:pass"),
        basic("user:pass:wor"),
        {"Authorization": "Bearer user:pass:word"},
        {"Authorization": "Basic user:pass:word"},
        {"Authorization": "Basic"},
    ]
    assert {client.get("/", headers=headers).status_code for headers in wrong} == {401}
    assert client.post("/health").status_code == 401
    assert client.get("//health").status_code == 401
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/socket"):
        pass


def test_a_proof_is_the_hmac_of_port_and_nonce() -> None:
    """By hand: HMAC-SHA256 with key `secret` of "plumbline server\\n8800\\n" and the nonce."""
    import hashlib
    import hmac

    told = hmac.new(b"secret", f"plumbline server\n8800\n{NONCE}".encode(), hashlib.sha256).hexdigest()
    client = TestClient(Proving(INNER, "secret", 8800), base_url=f"http://{HOST}")
    assert client.get(f"{PROOF_PATH}?nonce={NONCE}").json() == {"proof": told}
    assert proof("secret", NONCE, 8801) != told != proof("other", NONCE, 8800)
    assert client.get(PROOF_PATH).status_code == 400
    assert client.get(f"{PROOF_PATH}?nonce=plumbline%20server").status_code == 400
    assert client.get("/").text == "seen"
