"""The commands of fresh feedback, and the way of a batch from `ingest` to an admitted run on a trained workspace."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
from dataclasses import replace
from typing import Any

import orjson
import pytest

from plumbline.tasks.operations.admit_run import admit_run, finish_run
from plumbline.tasks.operations.announce import open_outbox
from plumbline.tasks.operations.freshness.outbox import entry_states
from plumbline.tasks.operations.intake.tokens import find_grant, load_grants, token_file
from plumbline.tasks.params.layers import load_params
from tests.flows.conftest import until

QUICK = ("trigger.debounce_s=0", "trigger.min_new_records=5")


def test_a_batch_becomes_an_admitted_run_once(copy: Any, tmp_path: Any) -> None:
    batch = tmp_path / "new.jsonl"
    rows = [{"prompt": f"what is {n} times {n}?", "chosen": f"that is {n * n}", "rejected": "no"} for n in range(6)]
    batch.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    copy.set_params(*QUICK)
    done = copy.run("ingest", "human_pairs", batch, "--json")
    assert done.code == 0 and done.payload["batches"][0]["announced"], done.err
    params = load_params(copy.root)[0]
    admission = admit_run(copy.root, params)
    assert admission.admitted and "6 new records of 5" in admission.reason
    assert len(admission.keys) == 1  # the batch that the model was trained on needs no run
    assert "under way" in admit_run(copy.root, params).reason
    finish_run(copy.root, params, str(admission.run_key), outcome="completed", model_uri=None, detail="")
    assert "had its run" in admit_run(copy.root, params, admission.keys[0]).reason
    listed = copy.run("outbox", "list", "--json").payload["entries"]
    assert {entry["state"] for entry in listed} == {"spent"}
    assert {item.state for item in entry_states(open_outbox(copy.root, params))} == {"spent"}


def test_what_the_dataset_holds_is_not_new(copy: Any, tmp_path: Any) -> None:
    known = copy.lines("data/curated/train.jsonl")[:8]
    path = tmp_path / "again.jsonl"
    names = ("prompt", "chosen", "rejected")
    rows = [{name: row[name] for name in names} | {"prompt": row["prompt"][-1]["content"].upper()} for row in known]
    rows = [row for row, source in zip(rows, known, strict=True) if len(source["prompt"]) == 1]
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    copy.set_params(*QUICK)
    assert copy.run("ingest", "human_pairs", path).code == 0
    assert "0 new records of 5" in admit_run(copy.root, load_params(copy.root)[0]).reason


def test_the_token_is_shown_once_and_kept_as_a_hash(fresh: Any) -> None:
    workspace = fresh("tokens")
    token = workspace.run("intake", "token", "ops", "--source", "human_pairs", "--json").payload["token"]
    path = token_file(workspace.root)
    assert token not in path.read_text() and stat.S_IMODE(path.stat().st_mode) == 0o600
    grant = find_grant(f"Bearer {token}", load_grants(path))
    assert grant is not None and grant.allows("human_pairs") and not grant.allows("judged_pairs")
    assert find_grant(f"Bearer {token}x", load_grants(path)) is None
    path.chmod(0o644)
    assert "only its owner can read" in workspace.run("intake", "serve").err
    path.chmod(0o600)
    assert workspace.run("intake", "token", "ops", "--revoke").code == 0
    assert "no token" in workspace.run("intake", "serve").err


def test_drain_and_scan_say_what_they_did(fresh: Any) -> None:
    workspace = fresh("drain")
    drained = workspace.run("outbox", "drain", "--json")
    assert drained.code == 0 and drained.payload["pending"] == []
    inbox = workspace.root / "inbox" / "human_pairs"
    inbox.mkdir(parents=True)
    (inbox / "empty.jsonl").touch()
    os.utime(inbox / "empty.jsonl", (1, 1))
    (handled,) = workspace.run("inbox", "scan", "--json").payload["handled"]
    assert handled["outcome"] == "refused" and "empty file" in handled["detail"]


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/api"])
def test_ingest_without_a_server_is_kept_pending(fresh: Any, url: str, tmp_path: Any) -> None:
    workspace = replace(fresh("pending"), server=url)
    path = tmp_path / "one.jsonl"
    path.write_text('{"prompt": "q?", "chosen": "yes", "rejected": "no"}\n')
    done = workspace.run("ingest", "human_pairs", path, "--json")
    assert done.code == 0 and done.payload["batches"][0]["announced"] is False
    assert "Events stay in the outbox" in done.payload["pending"]
    assert workspace.run("outbox", "drain").code == 3


@pytest.mark.long
def test_a_watcher_ends_at_the_first_signal_and_well(fresh: Any) -> None:
    workspace = fresh("watched")
    for number in (signal.SIGINT, signal.SIGTERM):
        with workspace.start("plumbline", "inbox", "watch", stderr=subprocess.PIPE) as watcher:
            told = iter(watcher.stderr.readline, b"")
            next(line for line in told if line.startswith(b"events go to"))
            path = workspace.root / "inbox/human_pairs/new.jsonl"
            until(path.parent.is_dir)
            path.write_text(f'{{"prompt": "{number}?", "chosen": "yes", "rejected": "no"}}\n')
            next(line for line in told if b"new.jsonl" in line)  # it watches
            watcher.send_signal(number)
            try:
                assert watcher.wait(10) == 0
            finally:
                watcher.kill()
