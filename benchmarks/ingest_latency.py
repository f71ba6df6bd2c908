"""From a file of feedback to a running flow run, on a real Prefect server with a warm worker.

`python -m benchmarks.ingest_latency --json`. A workspace of its own with services on free ports; no quiet time is
waited for (`trigger.debounce_s=0`). Each round drops a new file into the watched inbox, or ingests it, and waits until
the server calls the run of `retrain-on-fresh` RUNNING. The run then ends at once, on a base model that is not there.

1. `announced`: until the server has the flow run: file noticed, stored, versioned, outbox, event, trigger.
2. `started`: from there until RUNNING: the worker's poll, the run's process and its imports.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

PROGRAM = Path(sys.executable).with_name("plumbline")
DEADLINE_S = 180.0


def plumbline(root: Path, *arguments: str) -> None:
    """Run one command in the workspace."""
    done = subprocess.run([PROGRAM, *arguments, "-C", root], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"plumbline {' '.join(arguments)}: {done.stderr.strip()}")


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def services(root: Path) -> Iterator[str]:
    """The URL of the API of a server with a worker, warmed by one run."""
    port = free_port()
    settings = (
        f"services.prefect_port={port}",
        "services.mlflow=false",
        "trigger.debounce_s=0",
        "trigger.min_new_records=1",
        "trigger.max_runs_per_week=1000",
        "reference.base=/nonexistent",
        "sample_world.enabled=false",
    )
    plumbline(root, "up", *(part for setting in settings for part in ("--set", setting)))
    try:
        plumbline(root, "run", "poll-freshness", "--wait")
        yield f"http://127.0.0.1:{port}/api"
    finally:
        plumbline(root, "down")


@contextmanager
def watcher(root: Path) -> Iterator[None]:
    """`plumbline inbox watch`, for as long as the block runs, ready when it starts."""
    with (root / "inbox.log").open("wb") as log:
        process = subprocess.Popen([PROGRAM, "inbox", "watch", "-C", root], stdout=log, stderr=log)
    try:
        time.sleep(12)  # its imports
        yield
    finally:
        process.terminate()
        process.wait(60)


def write_batch(path: Path, name: str) -> None:
    """Twenty pairs that no batch before had."""
    rows = (
        {
            "prompt": f"Question {number} of {name}: which of the two is the better answer?",
            "response_a": f"The first answer to question {number}.",
            "response_b": f"Quite another answer to question {number}.",
            "label": "ab"[number % 2],
        }
        for number in range(20)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def runs(url: str) -> dict[str, dict[str, Any]]:
    """The runs of `retrain-on-fresh`, by id."""
    body = {"flows": {"name": {"any_": ["retrain-on-fresh"]}}, "limit": 200}
    answer = httpx.post(f"{url}/flow_runs/filter", json=body, timeout=30).raise_for_status()
    return {run["id"]: run for run in answer.json()}


def until_running(url: str, before: set[str], began: float) -> dict[str, float]:
    """Seconds until a new run was there, and until it ran, by the server's own stamps."""
    while time.time() - began < DEADLINE_S:
        started = [run for name, run in runs(url).items() if name not in before and run["start_time"]]
        if started:
            first = min(started, key=lambda run: run["start_time"])
            created, running = (datetime.fromisoformat(first[name]).timestamp() for name in ("created", "start_time"))
            return {"announced": created - began, "started": running - created, "in_all": running - began}
        time.sleep(0.1)
    raise SystemExit(f"no run of retrain-on-fresh within {DEADLINE_S:g} s")


def until_ended(url: str) -> None:
    """Wait until no run is under way, so that rounds do not meet."""
    while any(run["state_type"] not in {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"} for run in runs(url).values()):
        time.sleep(0.5)


def drop(root: Path, batch: Path) -> None:
    """Rename a whole file into the inbox."""
    folder = root / "inbox" / "human_pairs"
    folder.mkdir(parents=True, exist_ok=True)
    os.replace(batch, folder / batch.name)


def measure(rounds: int) -> dict[str, Any]:
    """Both ways in, `rounds` times each."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "workspace"
        subprocess.run([PROGRAM, "init", root], check=True, capture_output=True)
        taken: dict[str, list[dict[str, float]]] = {"inbox": [], "ingest": []}
        with services(root) as url:
            for number in range(rounds):
                for way in taken:
                    batch = root / f"{way}-{number}.jsonl"
                    write_batch(batch, batch.stem)
                    before = set(runs(url))
                    if way == "inbox":
                        with watcher(root):
                            began = time.time()
                            drop(root, batch)
                            taken[way].append(until_running(url, before, began))
                    else:
                        began = time.time()
                        plumbline(root, "ingest", "human_pairs", str(batch))
                        taken[way].append(until_running(url, before, began))
                    until_ended(url)
        shutil.rmtree(root, ignore_errors=True)
    return {
        "benchmark": "ingest_latency",
        "rounds": rounds,
        "seconds": {
            way: {name: _spread([round_[name] for round_ in found]) for name in found[0]}
            for way, found in taken.items()
        },
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark and print its result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(argv)
    result = measure(args.rounds)
    if args.json:
        print(json.dumps(result))
    else:
        for way, phases in result["seconds"].items():
            words = ", ".join(f"{name} {found['median']:.1f} s" for name, found in phases.items())
            print(f"{way}: {words} (medians of {args.rounds})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
