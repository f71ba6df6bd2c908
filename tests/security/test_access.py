"""Who gets in: another user of the machine, a page in the operator's browser, a name that was pointed at loopback.

The services are real and started once; every attempt is one that worked when a bind to loopback was all there was.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import psutil
import pytest

from plumbline.data_contracts.errors import OperationsError
from plumbline.flows.cli.access_checks import open_services, public_files
from plumbline.tasks.access.requests import basic
from plumbline.tasks.operations.announce import drain_outbox, request_retraining
from plumbline.tasks.operations.services.credentials import credentials_file
from plumbline.tasks.operations.services.processes import marked
from plumbline.tasks.params.layers import load_params
from tests.security.conftest import Up
from tests.tasks.operations.serving.conftest import Running, engine, serving  # noqa: F401

Stranger = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., Running]
CHAT = {"messages": [{"role": "user", "content": "hello"}]}
ROW = '{"prompt": "p", "chosen": "a", "rejected": "b"}'
READS = [
    ("prefect", "/api/admin/version"),
    ("prefect", "/api/admin/settings"),
    ("prefect", "/api/deployments/name/retrain/x"),
    ("prefect", "//api/health/../admin/version"),
    ("mlflow", "/"),
    ("mlflow", "/version"),
    ("mlflow", "/api/2.0/mlflow/registered-models/search?max_results=1"),
    ("mlflow", "/ajax-api/3.0/mlflow/assistant/config"),
    ("mlflow", "/health/../api/2.0/mlflow/experiments/search?max_results=1"),
    ("mlflow", "/get-artifact?path=x&run_uuid=y"),
]
WRITES = [
    ("prefect", "/api/deployments/", {"name": "x", "flow_id": "00000000-0000-0000-0000-000000000000"}),
    ("prefect", "/api/flows/", {"name": "stolen"}),
    ("prefect", "/api/flows/filter", {}),
    ("prefect", "/api/work_pools/", {"name": "stolen", "type": "process"}),
    ("prefect", "/api/events", []),
    ("prefect", "/api/variables/", {"name": "stolen", "value": "1"}),
    ("mlflow", "/api/2.0/mlflow/registered-models/create", {"name": "stolen"}),
    ("mlflow", "/api/2.0/mlflow/experiments/create", {"name": "stolen"}),
    ("mlflow", "/api/2.0/mlflow/users/create", {"username": "x", "password": "y"}),
    ("intake", "/v1/feedback/human_pairs", {"prompt": "p", "chosen": "a", "rejected": "b"}),
]


def _status(answer: subprocess.CompletedProcess[str]) -> int:
    return int(answer.stdout.rsplit("\n", 1)[-1])


def _curl(stranger: Stranger, url: str, *options: str) -> int:
    """The status that another user gets."""
    return _status(stranger("curl", "-s", "--path-as-is", "-m", "20", "-w", "\n%{http_code}", *options, url))


# --- another user ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "path"), READS)
def test_another_user_reads_nothing(up: Up, stranger: Stranger, name: str, path: str) -> None:
    assert _curl(stranger, f"{up.url(name)}{path}") in (401, 404)
    assert _curl(stranger, f"{up.url(name)}{path}", "-u", "admin:password1234") in (401, 404)


@pytest.mark.parametrize(("name", "path", "body"), WRITES)
def test_another_user_creates_nothing(up: Up, stranger: Stranger, name: str, path: str, body: object) -> None:
    options = ("-X", "POST", "-H", "Content-Type: application/json", "-d", json.dumps(body))
    assert _curl(stranger, f"{up.url(name)}{path}", *options) == 401
    assert _curl(stranger, f"{up.url(name)}{path}", *options, "-H", "Authorization: Bearer x") == 401


def test_another_user_opens_no_websocket(up: Up, stranger: Stranger) -> None:
    """Prefect's sockets ask for credentials in their first message: none come, nothing is told, and it is closed."""
    code = """
import socket, sys, base64, os
host, port, path = "127.0.0.1", int(sys.argv[1]), sys.argv[2]
s = socket.create_connection((host, port), timeout=20)
key = base64.b64encode(os.urandom(16)).decode()
s.sendall(f"GET {path} HTTP/1.1\\r\\nHost: {host}:{port}\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\n"
          f"Sec-WebSocket-Key: {key}\\r\\nSec-WebSocket-Version: 13\\r\\n\\r\\n".encode())
print(s.recv(4096).split(b"\\r\\n")[0].decode())
"""
    port = up.url("prefect").rsplit(":", 1)[1]
    for path in ("/api/events/out", "/api/events/in", "/api/logs/out", "/api/task_runs/subscriptions/scheduled"):
        said = stranger("/usr/bin/python3", "-c", code, port, path)
        assert "101" not in said.stdout.split(" ", 2)[1], said


def test_health_and_proof_tell_nothing_else(up: Up, stranger: Stranger) -> None:
    for url in (f"{up.url('prefect')}/api/health", f"{up.url('mlflow')}/health", f"{up.url('intake')}/healthz"):
        assert _curl(stranger, url) == 200
    told = stranger("curl", "-s", f"{up.url('prefect')}/.well-known/plumbline?nonce={'0' * 32}").stdout
    assert set(json.loads(told)) == {"proof"}
    assert not any(secret.split(":")[1] in told for secret in up.credentials.values())


def test_another_user_asks_the_chat_nothing(serving: Start, stranger: Stranger) -> None:  # noqa: F811
    url = serving(token="k" * 43).url
    options = ("-X", "POST", "-H", "Content-Type: application/json", "-d", json.dumps(CHAT))
    assert _curl(stranger, f"{url}/v1/chat/completions", *options) == 401
    assert _curl(stranger, f"{url}/v1/models") == 401
    assert _curl(stranger, f"{url}/v1/interactions/x/feedback", *options) == 401
    assert _curl(stranger, f"{url}/healthz") == 200


def test_another_user_reads_no_credentials(up: Up, stranger: Stranger) -> None:
    """Not in files, not on a command line, not in the environment of a process."""
    file = credentials_file(up.plan.folder)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert stranger("cat", str(file)).returncode != 0
    assert stranger("ls", str(file.parent)).returncode != 0
    secrets = [value.split(":")[1] for value in up.credentials.values()]
    assert len(set(secrets)) == 2 and all(len(secret) >= 40 for secret in secrets)
    for process in marked(up.plan.folder):
        assert not any(secret in " ".join(process.cmdline()) for secret in secrets)
        assert stranger("cat", f"/proc/{process.pid}/environ").returncode != 0
    others = [path for path in up.root.rglob("*") if path.is_file() and path != file]
    holders = [path for path in others for secret in secrets if secret.encode() in path.read_bytes()]
    assert holders == []


def test_the_supervisor_itself_does_not_know_them(up: Up) -> None:
    """The launcher gives each service its own; MLflow is not told Prefect's."""
    by_name = {process.environ().get("PLUMBLINE_SERVICE"): process for process in marked(up.plan.folder)}
    prefect, mlflow = up.credentials["prefect"], up.credentials["mlflow"]
    assert by_name["worker"].environ()["PREFECT_API_AUTH_STRING"] == prefect
    assert not {prefect, mlflow} & set(by_name[None].environ().values())
    assert prefect not in by_name["mlflow"].environ().values()
    assert mlflow not in by_name["prefect"].environ().values()


def test_doctor_finds_it_all_closed_and_says_what_is_open(up: Up, tmp_path: Path) -> None:
    params, _ = load_params(up.root)
    assert (public_files(up.root, params), open_services(up.root, params)) == ([], [])
    file = credentials_file(up.plan.folder)
    file.chmod(0o644)
    try:
        (found,) = public_files(up.root, params)
        assert found == f"{file} has mode 644 and belongs to user {os.getuid()}"
    finally:
        file.chmod(0o600)


# --- a name that was pointed at loopback, and pages of other origins --------------------------------------------------


@pytest.mark.parametrize("name", ["prefect", "mlflow", "intake"])
@pytest.mark.parametrize("host", ["rebound.example", "10.evil.example", "127.0.0.1.evil.example", ""])
def test_a_rebound_name_is_refused_even_with_credentials(up: Up, name: str, host: str) -> None:
    secrets = {**up.credentials, "intake": "x:y"}
    path = {"prefect": "/api/admin/version", "mlflow": "/", "intake": "/healthz"}[name]
    headers = {**basic(secrets[name]), "Host": host}
    assert httpx.get(f"{up.url(name)}{path}", headers=headers, trust_env=False).status_code == 400


@pytest.mark.parametrize("origin", ["http://evil.example", "http://127.0.0.1:1", "https://localhost", "null"])
def test_a_foreign_origin_is_refused_even_with_credentials(up: Up, origin: str) -> None:
    """As a browser sends it that remembers the password of the page."""
    asked = [
        ("POST", f"{up.url('prefect')}/api/flows/", basic(up.credentials["prefect"])),
        ("GET", f"{up.url('mlflow')}/version", basic(up.credentials["mlflow"])),
        ("POST", f"{up.url('mlflow')}/api/2.0/mlflow/experiments/create", basic(up.credentials["mlflow"])),
        ("POST", f"{up.url('intake')}/v1/feedback/human_pairs", {"Authorization": f"Bearer {up.token}"}),
    ]
    for method, url, headers in asked:
        answer = httpx.request(method, url, headers={**headers, "Origin": origin}, trust_env=False)
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers


ATTEMPTS = """
async targets => {
  const seen = [];
  const note = (what, said) => seen.push([what, String(said)]);
  for (const [method, url, body, headers] of targets) {
    for (const mode of ["cors", "no-cors"]) for (const credentials of ["include", "omit"]) {
      const options = {method, mode, credentials, headers: mode == "cors" ? headers : {"Content-Type": "text/plain"}};
      if (method != "GET") options.body = body;
      try {
        const answer = await fetch(url, options);
        note(`${mode} ${method} ${url}`, answer.type == "opaque" ? "opaque" : await answer.text());
      } catch (error) { note(`${mode} ${method} ${url}`, "blocked"); }
    }
  }
  return seen;
}
"""
SOCKET = """
url => new Promise(done => {
  const socket = new WebSocket(url, ["prefect"]);
  socket.onopen = () => done("open");
  socket.onerror = () => done("refused");
})
"""


@contextmanager
def _foreign_page() -> Iterator[int]:
    """A web server of somebody else: its port."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>foreign</title>")

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Page)
    Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("site", ["evil.example", "127.0.0.1"])
def test_a_page_of_another_origin_can_do_nothing(
    up: Up,
    serving: Start,  # noqa: F811
    browser: Any,
    site: str,
) -> None:
    """In a browser that is logged in to MLflow, from a strange name and from another port of this machine."""
    chat = serving(token=None)  # as an operator may choose: then Origin alone keeps pages out
    user, password = up.credentials["mlflow"].split(":")
    json_type = {"Content-Type": "application/json"}
    bearer = {**json_type, "Authorization": f"Bearer {up.token}", "Idempotency-Key": "page"}
    prefect = {**json_type, **basic(up.credentials["prefect"])}
    targets = [
        ("POST", f"{up.url('prefect')}/api/flows/", '{"name": "stolen"}', prefect),
        ("GET", f"{up.url('prefect')}/api/admin/version", "", prefect),
        ("POST", f"{up.url('mlflow')}/api/2.0/mlflow/experiments/create", '{"name": "stolen"}', json_type),
        ("GET", f"{up.url('mlflow')}/version", "", json_type),
        ("POST", f"{up.url('intake')}/v1/feedback/human_pairs", ROW, bearer),
        ("POST", f"{chat.url}/v1/chat/completions", json.dumps(CHAT), json_type),
        ("GET", f"{chat.url}/v1/models", "", {}),
    ]
    context = browser.new_context(http_credentials={"username": user, "password": password})
    with _foreign_page() as port:
        page = context.new_page()
        answer = page.goto(up.url("mlflow"), wait_until="domcontentloaded")
        assert answer.status == 200, "the browser is not logged in"
        page.goto(f"http://{site}:{port}/")
        seen = page.evaluate(ATTEMPTS, [list(target) for target in targets])
        assert len(seen) == 4 * len(targets)
        assert {said for _, said in seen} <= {"blocked", "opaque"}, seen
        socket_url = up.url("prefect").replace("http", "ws") + "/api/events/out"
        assert page.evaluate(SOCKET, socket_url) == "refused"
        page.set_content(f"<iframe src='{up.url('mlflow')}/'></iframe><img src='{up.url('mlflow')}/version'>")
        page.wait_for_timeout(500)
    context.close()
    assert chat.logged() == []
    own = {**basic(up.credentials["prefect"]), **json_type}
    flows = httpx.post(f"{up.url('prefect')}/api/flows/filter", headers=own, json={}, trust_env=False).json()
    assert "stolen" not in {flow["name"] for flow in flows}
    found = httpx.get(
        f"{up.url('mlflow')}/api/2.0/mlflow/experiments/search?max_results=100",
        headers=basic(up.credentials["mlflow"]),
        trust_env=False,
    ).json()
    assert "stolen" not in {item["name"] for item in found.get("experiments", [])}


def test_a_rebound_page_sees_a_refusal_and_the_operator_sees_the_pages(up: Up, browser: Any) -> None:
    """The end of a DNS rebinding: a page of rebound.example, whose name now is 127.0.0.1, asks our port."""
    user, password = up.credentials["mlflow"].split(":")
    context = browser.new_context(http_credentials={"username": user, "password": password})
    page = context.new_page()
    for name in ("prefect", "mlflow", "intake"):
        answer = page.goto(up.url(name).replace("127.0.0.1", "rebound.example"))
        assert (answer.status, answer.text()) == (400, "Invalid host header")
    for host in ("127.0.0.1", "localhost"):
        assert page.goto(up.url("mlflow").replace("127.0.0.1", host)).status == 200
        asked: list[int] = []
        page.on("response", lambda answer, asked=asked: asked.append(answer.status) if "/api/" in answer.url else None)
        page.goto(up.url("prefect").replace("127.0.0.1", host))
        page.wait_for_timeout(1500)
        assert 403 not in asked
    context.close()


# --- credentials go to our own server alone ---------------------------------------------------------------------------


def test_what_listens_on_our_port_is_sent_no_credentials(up: Up, tmp_path: Path) -> None:
    """Somebody took the port while the services were down: a command says so, and sends nothing."""
    from tests.flows.conftest import Workspace

    heard: list[str] = []

    class Thief(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append(str(self.headers))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"true")

        def log_message(self, *_: object) -> None:
            pass

    root = tmp_path / "w"
    root.mkdir()
    mine = Workspace(root, "")
    assert mine.run("init", ".").code == 0
    folder = root / ".plumbline/services"
    credentials = credentials_file(folder)
    folder.mkdir(parents=True, mode=0o700)
    credentials.write_bytes(credentials_file(up.plan.folder).read_bytes())
    credentials.chmod(0o600)
    server = HTTPServer(("127.0.0.1", 0), Thief)
    Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/api"
    mine.set_params(f"services.prefect_port={server.server_address[1]}")
    (folder / "services.json").write_text(json.dumps({"prefect_api_url": url, "prefect_is_own": True}))
    try:
        for command in (["deploy"], ["run", "retrain"], ["schedule", "0 3 * * 1"], ["status"]):
            done = mine.run(*command)
            assert done.code == (1 if command == ["status"] else 2), (command, done.err)
            assert "not what answers" in done.err or "own server" in done.err + done.out or "does not run" in done.out
        params, _ = load_params(root)
        request_retraining(root, params, key="finding/1", why="it fell", evidence={})
        with pytest.MonkeyPatch.context() as patch:  # a watch that was started while the services were up
            patch.setenv("PREFECT_API_URL", url)
            patch.setenv("PREFECT_API_AUTH_STRING", up.credentials["prefect"])
            with pytest.raises(OperationsError, match="own server"):
                drain_outbox(root, params)
        assert load_params(root)[0].schedule.retrain_cron is None, "nothing is written for a server that is not ours"
    finally:
        server.shutdown()
        server.server_close()
    assert heard
    assert not any("authorization" in headers.lower() for headers in heard)


def test_another_workspaces_server_is_refused(up: Up, tmp_path: Path) -> None:
    """Same machine, same user, another workspace: its port by params is refused, by name it asks for credentials."""
    from tests.flows.conftest import Workspace

    other = Workspace(tmp_path, "")
    assert other.run("init", ".").code == 0
    port = up.url("prefect").rsplit(":", 1)[1]
    other.set_params(f"services.prefect_port={port}")
    for command in (["deploy"], ["run", "retrain"], ["schedule", "0 3 * * 1"]):
        done = other.run(*command)
        assert done.code == 2, command
        assert "expected this workspace's own server" in done.err
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_API_URL", f"{up.url('prefect')}/api/")
        other.set_params("services.prefect_port=4999")
        done = other.run("deploy")
        assert done.code == 2
        assert "asks for credentials (401)" in done.err
        patch.setenv("PREFECT_API_AUTH_STRING", up.credentials["prefect"])
        named = other.run("deploy", "--json")
        assert named.payload["server"] == {"url": f"{up.url('prefect')}/api", "whose": "named by PREFECT_API_URL"}


def test_commands_of_the_workspace_use_its_server_and_name_it(up: Up) -> None:
    from tests.flows.conftest import Workspace

    mine = Workspace(up.root, "")
    done = mine.run("run", "poll-freshness", "--wait", "--json")
    assert done.code == 0, done.err
    assert done.payload["server"] == {"url": up.plan.prefect_api_url, "whose": "this workspace's own"}
    assert mine.run("deploy", "--json").payload["changes"] == []
    assert mine.run("outbox", "drain", "--json").payload["server"] == done.payload["server"]
    assert mine.run("status").code == 0
    assert up.credentials["prefect"] in mine.run("status", "--credentials").out, "whole, however narrow the terminal"
    shown = {item["server"]: item for item in mine.run("status", "--credentials", "--json").payload["credentials"]}
    assert f"{shown['mlflow']['user']}:{shown['mlflow']['password']}" == up.credentials["mlflow"]
    logs = [process for process in marked(up.plan.folder) if not isinstance(process, psutil.Popen)]
    assert logs
