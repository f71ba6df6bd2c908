"""From a file of feedback to a running flow run, on a real Prefect server with a worker.

`python -m benchmarks.ingest_latency --json`. A workspace of its own with services on free ports; no quiet time is
waited for (`trigger.debounce_s=0`). Each round drops a new file into the watched inbox, or ingests it, and waits
until the server calls the run of `retrain-on-fresh` RUNNING. The run then ends at once, on a base model that is not
there. One round before is not counted.

1. `announced`: until the server has the flow run: file noticed, stored, versioned, outbox, event, trigger.
2. `started`: from there until RUNNING: the worker's poll, and the run's process with its imports.
3. `cpu`: seconds of CPU that command, watcher, server, worker and run used meanwhile; on a busy machine they say more.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import psutil

from plumbline.tasks.operations.services.plan import services_folder
from plumbline.tasks.operations.services.processes import marked

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
    """The URL of the API of a server with a worker."""
    port = free_port()
    settings = (
        f"services.prefect_port={port}",
        "services.mlflow=false",
        "trigger.debounce_s=0",
        "trigger.min_new_records=1",
        "trigger.max_runs_per_week=1000",
        "schedule.poll_cron='0 0 1 1 *'",
        "reference.base=/nonexistent",
        "sample_world.enabled=false",
    )
    try:
        plumbline(root, "up", *(part for setting in settings for part in ("--set", setting)))
        yield f"http://127.0.0.1:{port}/api"
    finally:
        plumbline(root, "down")


@contextmanager
def watcher(root: Path) -> Iterator[psutil.Process]:
    """`plumbline inbox watch`, for as long as the block runs, ready when it starts."""
    with (root / "inbox.log").open("wb") as log:
        process = subprocess.Popen([PROGRAM, "inbox", "watch", "-C", root], stdout=log, stderr=log)
    try:
        until(lambda: (root / "inbox" / "human_pairs").is_dir())
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(60)


def until(happens: Callable[[], bool]) -> None:
    """Wait for something."""
    began = time.monotonic()
    while not happens():
        if time.monotonic() - began > DEADLINE_S:
            raise SystemExit(f"waited without success for {DEADLINE_S:g} s")
        time.sleep(0.2)


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


def at_rest(url: str) -> None:
    """Wait until no run is under way, so that rounds do not meet."""
    ends = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
    until(lambda: all(run["state_type"] in ends for run in runs(url).values()))


def seconds(process: psutil.Process) -> float:
    """Seconds of CPU that a process has used."""
    times = process.cpu_times()
    return float(times.user + times.system)


def drop(root: Path, batch: Path) -> None:
    """Rename a whole file into the inbox."""
    os.replace(batch, root / "inbox" / "human_pairs" / batch.name)


def ingest(root: Path, batch: Path) -> None:
    """Ingest a file by the command."""
    plumbline(root, "ingest", "human_pairs", str(batch))


WAYS: dict[str, Callable[[Path, Path], None]] = {"inbox": drop, "ingest": ingest}


def one_round(root: Path, url: str, way: str, watching: psutil.Process) -> dict[str, float]:
    """The phases of one new file, in seconds."""
    batch = root / f"{way}-{time.time_ns()}.jsonl"
    write_batch(batch, batch.stem)
    before, used, children = set(runs(url)), cpu(root, watching), os.times()
    began = time.time()
    WAYS[way](root, batch)
    phases = until_running(url, before, began)
    after, ended = cpu(root, watching), os.times()
    command = ended.children_user + ended.children_system - children.children_user - children.children_system
    return phases | {"cpu": command + sum(after[pid] - used.get(pid, 0.0) for pid in after)}


def cpu(root: Path, watching: psutil.Process) -> dict[int, float]:
    """Seconds of CPU so far of each process of the services, of their runs, and of the watcher."""
    return {process.pid: seconds(process) for process in (*marked(services_folder(root)), watching)}


def measure(rounds: int) -> dict[str, Any]:
    """Both ways in, `rounds` times each."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "workspace"
        subprocess.run([PROGRAM, "init", root, "--sample-world"], check=True, capture_output=True)
        taken: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        with services(root) as url, watcher(root) as watching:
            for number in range(rounds + 1):
                for way, found in taken.items():
                    at_rest(url)
                    phases = one_round(root, url, way, watching)
                    if number:
                        found.append(phases)
        shutil.rmtree(root, ignore_errors=True)
    return {
        "benchmark": "ingest_latency",
        "rounds": rounds,
        "load": os.getloadavg()[0],
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
