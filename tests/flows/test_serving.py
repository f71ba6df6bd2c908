"""`plumbline serve` as a process over a trained workspace: answers, shadow, an alias that moves, a tampered version."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from plumbline.tasks.params.layers import load_params
from plumbline.tasks.registry.ledger import ledger
from plumbline.tasks.registry.store.client import Store
from plumbline.tasks.registry.versions.registered import StoredFiles, resolve
from tests.flows.conftest import Workspace

FAST = ("--set", "serving.poll_s=0.2", "--set", "serving.shadow.share=1", "--set", "serving.limits.default_tokens=8")
KEYS: dict[str, str] = {}  # URL -> the key that `plumbline serve` made
LENIENT = ("--set", "judge.min_kappa=-1", "--set", "judge.max_position_bias=1", "--set", "judge.max_unusable=1")


@contextmanager
def served(workspace: Workspace, *settings: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    process = workspace.start(
        "plumbline", "serve", "--port", 0, "--json", *settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    try:
        told = b""
        while not told.rstrip().endswith(b"}"):
            line = process.stdout.readline()
            assert line, process.stderr.read().decode()
            told += line
        ready = json.loads(told)
        KEYS[ready["url"]] = Path(ready["key"]).read_text().strip()
        yield ready["url"], process
    finally:
        process.kill()
        process.wait(30)


def move(workspace: Workspace, alias: str, number: str, expected: str | None) -> None:
    params, _ = load_params(workspace.root)
    ledger.move_alias(
        ledger.open_ledger(workspace.root, params.operations),
        Store(workspace.root, params.registry),
        alias=alias,
        version=number,
        expected=expected,
        action="assign",
        actor="test",
        reason="a test",
        evidence={},
    )


def until(url: str, holds: Callable[[dict[str, Any]], bool], within_s: float = 120.0) -> dict[str, Any]:
    end = time.monotonic() + within_s
    health: dict[str, Any] = {}
    while time.monotonic() < end:
        health = httpx.get(f"{url}/healthz").json()
        if holds(health):
            return health
        time.sleep(0.05)
    pytest.fail(f"not in time: {health}")


def second_version(workspace: Workspace) -> None:
    done = workspace.run("retrain", "--set", "finetune.dpo.beta=0.3", "--json")
    assert done.code == 0, done.err


def ask(url: str, **settings: Any) -> Any:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=KEYS[url], max_retries=0, timeout=60)
    messages: Any = [{"role": "user", "content": "name a colour"}]
    return client.chat.completions.create(model="assistant", messages=messages, **settings)


@pytest.mark.long
def test_an_alias_that_moves_is_followed_and_both_versions_are_logged_and_harvested(copy: Workspace) -> None:
    second_version(copy)
    move(copy, "challenger", "2", None)
    with served(copy, *FAST) as (url, process):
        first = ask(url, seed=5, extra_headers={"x-request-id": "r-1"})
        assert (first.id, first.model) == ("r-1", "models:/assistant/1")
        again = ask(url, seed=5, stream=True)
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in again)
        assert streamed == first.choices[0].message.content
        until(url, lambda health: health["versions"]["shadow"] == "models:/assistant/2")
        assert ask(url, extra_headers={"x-request-id": "r-2"}).id == "r-2"
        until(url, lambda health: health["shadow"]["answered"] >= 1)
        key = {"Authorization": f"Bearer {KEYS[url]}"}
        told = httpx.post(
            f"{url}/v1/interactions/r-2/feedback", json={"kind": "thumb_up", "annotator": "ann"}, headers=key
        )
        assert told.status_code == 200

        move(copy, "champion", "2", "1")
        moved = time.monotonic()
        until(url, lambda health: health["champion"] == "models:/assistant/2")
        assert ask(url, seed=5).model == "models:/assistant/2"
        (copy.root / "switch_seconds.txt").write_text(f"{time.monotonic() - moved:.2f}")
        until(url, lambda health: (health["shadow"]["state"], health["versions"]["shadow"]) == ("idle", None))

        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0

    lines = {(item["role"], item["model_uri"]): item for item in copy.run("traffic", "--json").payload["versions"]}
    assert lines["champion", "models:/assistant/1"]["answers"] == 3
    assert lines["champion", "models:/assistant/1"]["feedback"] == {"thumb_up": 1}
    assert lines["champion", "models:/assistant/2"]["answers"] == 1
    assert lines["shadow", "models:/assistant/2"]["answers"] >= 1

    done = copy.run("harvest", *LENIENT, "--json")
    assert done.code == 0, done.err
    assert done.payload["judged_pairs"]["counts"]["interactions"] >= 1
    (row,) = copy.lines(done.payload["unpaired_responses"]["batch"])
    assert (row["thumb"], row["metadata"]) == ("up", {"model_uri": "models:/assistant/1", "request_id": "r-2"})
    again_ = copy.run("harvest", *LENIENT, "--json").payload
    assert [again_[source]["counts"]["interactions"] for source in again_] == [0, 0]


@pytest.mark.long
def test_a_tampered_version_is_not_loaded_and_the_champion_goes_on(copy: Workspace, tmp_path: Path) -> None:
    second_version(copy)
    params, _ = load_params(copy.root)
    store = Store(copy.root, params.registry)
    folder = StoredFiles(store, resolve(store, "models:/assistant/2")).folder
    weights = folder / "model/model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.chmod(0o644)
    weights.write_bytes(data)
    with served(copy, *FAST, "--set", "serving.shadow.share=0") as (url, _):
        move(copy, "champion", "2", "1")
        health = until(url, lambda health: bool(health["alerts"]))
        assert (health["status"], health["champion"]) == ("alert", "models:/assistant/1")
        assert "models:/assistant/2" in health["alerts"][0]
        assert ask(url).model == "models:/assistant/1"
    refused = copy.run("serve", "--port", 0, "--json")
    assert (refused.code, refused.payload["error"]["kind"]) == (1, "SignatureError")


def test_wrong_settings_are_refused_before_anything_is_loaded(copy: Workspace) -> None:
    done = copy.run("serve", "--set", "serving.host=0.0.0.0", "--set", "serving.anonymous=true")
    assert done.code == 2
    assert "anonymous" in done.err
    nobody = copy.run("serve", "--port", 0, "--alias", "challenger", "--json")
    assert (nobody.code, nobody.payload["error"]["kind"]) == (2, "UnknownModelError")
    ungated = copy.run("serve", "--port", 0, "--alias", "shadow", "--json")
    assert (ungated.code, ungated.payload["error"]["kind"]) == (2, "UsageError")
    assert "challenger, champion" in ungated.payload["error"]["message"]
    unset = copy.run("serve", "--set", "serving.token=$PLUMBLINE_NOT_SET")
    assert unset.code == 2
    assert "PLUMBLINE_NOT_SET" in unset.err
