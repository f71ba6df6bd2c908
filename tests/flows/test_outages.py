"""The registry or the remote does not answer, from the start or of a sudden: what is said, what the next run does."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from plumbline.tasks.params.layers import load_params
from plumbline.tasks.registry.store.client import Store
from plumbline.tasks.registry.versions.registered import all_versions
from plumbline.tasks.storage.versioning.workspace import Versions, init_versioning
from tests.flows.conftest import Workspace

NOWHERE = "http://127.0.0.1:9"
NEW_POLICY = "finetune.dpo.beta=0.31"  # one that no other test has put into the run-cache


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more try, instead of a minute of them."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")


def test_a_registry_that_does_not_answer_is_named_before_any_training(copy: Workspace, impatient: None) -> None:
    before = copy.hashes()
    done = copy.run("retrain", "--set", f"registry.tracking_uri={NOWHERE}", "--set", NEW_POLICY, "--json")
    assert (done.code, done.payload["error"]["kind"]) == (3, "RegistryError")
    assert NOWHERE in done.err
    assert "registry.tracking_uri" in done.err
    assert "Traceback" not in done.err
    assert copy.hashes() == before


@pytest.mark.long
def test_a_remote_that_does_not_answer_is_named_before_any_training(copy: Workspace) -> None:
    """Else it would be found by the push, when all is trained. Without a push nothing needs it."""
    before = copy.hashes()
    init_versioning(copy.root, f"{NOWHERE}/dvc")
    done = copy.run("retrain", "--set", "gate.min_prompts=17", "--json")
    assert (done.code, done.payload["error"]["kind"]) == (3, "VersioningError")
    assert "failed 3 times" in done.err
    assert "registry.push=false" in done.err
    assert copy.hashes() == before
    assert copy.run("retrain", "--set", "registry.push=false", "--json").redone == ["gate"]


def test_a_ledger_of_another_registry_is_named_before_any_training(copy: Workspace, tmp_path: Path) -> None:
    """The registry is new and empty, the ledger knows a champion: nothing could be registered behind the training."""
    before = copy.hashes()
    new = f"registry.tracking_uri=sqlite:///{tmp_path / 'new.db'}"
    done = copy.run("retrain", "--set", new, "--set", NEW_POLICY, "--json")
    assert (done.code, done.payload["error"]["kind"]) == (1, "SignatureError")
    assert "ledger of assistant" in done.err
    assert copy.hashes() == before


@pytest.mark.long
def test_a_registry_that_dies_behind_training_costs_no_training(
    copy: Workspace, tmp_path: Path, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real server, killed when DVC has the policy; started again, it gets one version, from the policy of before."""
    start = _mlflow(tmp_path)
    for file in (copy.root / ".plumbline").glob("operations.db*"):
        file.unlink()  # its ledger is about the registry of before: with a new one it would be refused
    commit = Versions.commit_stage
    with start() as (url, server):

        def commit_and_kill(versions: Versions, name: str) -> None:
            commit(versions, name)
            if name == "finetune":
                _kill(server)

        with monkeypatch.context() as patch:
            patch.setattr(Versions, "commit_stage", commit_and_kill)
            done = copy.run("retrain", "--set", f"registry.tracking_uri={url}", "--set", NEW_POLICY, "--json")
    assert (done.code, done.payload["error"]["kind"]) == (3, "RegistryError"), done.err
    assert "finished stages are kept" in done.err
    assert "Traceback" not in done.err
    policy = copy.hashes()["models/policy"]
    with start():
        again = copy.run("retrain", "--json")
        assert again.redone == ["evaluate", "gate"]
        assert copy.hashes()["models/policy"] == policy
        params, _ = load_params(copy.root)
        store = Store(copy.root, params.registry)
        (version,) = all_versions(store, params.registry.model_name)
        assert version.uri == again.payload["model_uri"]
        runs = store.client.search_runs([store.experiment_id()], "attributes.status = 'RUNNING'")
        assert [run.info.run_name for run in runs if run.data.tags.get("plumbline.stage")] == []


def _mlflow(home: Path) -> Callable[[], Any]:
    """Start MLflow's own server; each start has the same address and the same database."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    options = ("--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--backend-store-uri", "sqlite:///m.db")

    @contextmanager
    def start() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
        with (home / "mlflow.log").open("ab") as log:
            command = [sys.executable, "-m", "mlflow", "server", *options]
            process = subprocess.Popen(command, cwd=home, stdout=log, stderr=log, start_new_session=True)
        try:
            _until_answers(url, process, home / "mlflow.log")
            yield url, process
        finally:
            _kill(process)

    return start


def _kill(server: subprocess.Popen[bytes]) -> None:
    """The whole group: MLflow's command starts the process that answers, which would outlive it."""
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def _until_answers(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 180
    while True:
        assert process.poll() is None, log.read_text()[-2000:]
        assert time.monotonic() < until, log.read_text()[-2000:]
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.3)
