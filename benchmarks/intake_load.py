"""The feedback endpoint under a mixed load: rate achieved, latencies, statuses, CPU seconds, and that all lands once.

`python -m benchmarks.intake_load [--requests 2000] [--rate 200] [--by-kind] [--json]`. A workspace of its own, the
endpoint as `plumbline intake serve`, the client (`benchmarks.intake_client`) as a third process. Rates and latencies
depend on what else the machine does: the load average is printed with them. CPU seconds hardly do.

`late` is how long after its due time a request left the client: where it is large, the client set the rate.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.intake_client import SHARES

_LANDED_WITHIN_S = 120.0
_SEED = 5
_ACCEPTABLE = {"valid", "replayed"}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A running endpoint and a token for it."""

    root: Path
    port: int
    token: str
    process: psutil.Process

    def cpu_s(self) -> float:
        """CPU seconds that it has used."""
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def until_quiet(self) -> None:
        """Wait until it works on nothing: the first seal imports much."""
        before = -1.0
        while self.cpu_s() - before > 0.05:
            before = self.cpu_s()
            time.sleep(2)

    def ids(self) -> list[str]:
        """The ids of all rows of the raw store."""
        files = (self.root / "data/raw").rglob("*.jsonl")
        return [json.loads(line)["id"] for file in files for line in file.read_bytes().splitlines()]


@contextmanager
def endpoint(folder: Path) -> Iterator[Endpoint]:
    """`plumbline intake serve` in a new workspace, for as long as the block runs."""
    from plumbline.flows.graph.workspaces import init_workspace
    from plumbline.tasks.operations.intake.tokens import create_token, token_file
    from plumbline.tasks.params.document import save_params
    from plumbline.tasks.params.layers import load_params

    root = folder / "workspace"
    init_workspace(root)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    settings = [f"intake.port={port}", "intake.requests_per_s=100000", "intake.seal_every_s=5"]
    save_params(root, load_params(root, (), settings)[1])
    token = create_token(token_file(root), "load")
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    with (folder / "serve.log").open("wb") as log:
        command = [sys.executable, "-m", "plumbline", "intake", "serve", "-C", str(root)]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        _until_it_answers(process, port, folder / "serve.log")
        yield Endpoint(root, port, token, psutil.Process(process.pid))
    finally:
        process.terminate()
        process.wait(60)


def _until_it_answers(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    while process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise SystemExit(f"the endpoint did not come up:\n{log.read_text()[-2000:]}")


def measure(running: Endpoint, requests: int, rate: float, kinds: Sequence[str], name: str) -> dict[str, Any]:
    """One round of load and its outcome. Ends the program where a row was taken that should not be, or lost."""
    spec = {
        "requests": requests, "rate": rate, "kinds": list(kinds), "token": running.token, "seed": _SEED, "name": name,
        "host": "127.0.0.1", "port": running.port,
    }  # fmt: skip
    before = running.cpu_s()
    command = [sys.executable, "-m", "benchmarks.intake_client"]
    done = subprocess.run(command, input=json.dumps(spec), capture_output=True, text=True, check=True)
    server_cpu_s = running.cpu_s() - before
    result = json.loads(done.stdout)
    outcomes = result["outcomes"]
    accepted = {row_id for kind, row_id, status, *_ in outcomes if status == 202 and kind in _ACCEPTABLE}
    wrong = Counter(kind for kind, _, status, *_ in outcomes if status == 202 and kind not in _ACCEPTABLE)
    landed = _landed(running, accepted, name)
    if wrong or sorted(landed) != sorted(accepted):
        raise SystemExit(f"accepted {len(accepted)}, landed {len(landed)}, accepted of other kinds: {dict(wrong)}")
    return {
        "requests": requests,
        "offered_per_s": rate,
        "achieved_per_s": requests / result["wall_s"],
        "server_cpu_ms": 1000 * server_cpu_s / requests,
        "client_cpu_ms": 1000 * result["cpu_s"] / requests,
        "accepted": len(accepted),
        "landed_once": len(landed),
        "statuses": dict(sorted(Counter(str(status) for _, _, status, *_ in outcomes).items())),
        "sent_again": sum(outcome[5] for outcome in outcomes),
        "late_ms": percentiles([outcome[3] for outcome in outcomes]),
        "latency_ms": {
            kind: percentiles([outcome[4] for outcome in outcomes if outcome[0] == kind])
            for kind in dict.fromkeys(outcome[0] for outcome in outcomes)
        },
        "load_average": os.getloadavg()[0],
    }


def _landed(running: Endpoint, accepted: set[str], name: str) -> list[str]:
    """Rows of this round in the raw store once all accepted ones are there, or after a while."""
    until = time.monotonic() + _LANDED_WITHIN_S
    while True:
        ids = [row_id for row_id in running.ids() if f"-{name}" in row_id]
        if accepted <= set(ids) or time.monotonic() > until:
            return ids
        time.sleep(0.5)


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Median, 90th and 99th percentile and the largest, in milliseconds."""
    ordered = sorted(seconds)
    at = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {name: 1000 * ordered[min(int(share * len(ordered)), len(ordered) - 1)] for name, share in at.items()}


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark and print its result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second that are offered")
    parser.add_argument("--by-kind", action="store_true", help="a round of each kind alone, too: its CPU time")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)
    rounds = {"mixed": list(SHARES)} | ({kind: [kind] for kind in SHARES} if args.by_kind else {})
    with tempfile.TemporaryDirectory() as folder, endpoint(Path(folder)) as running:
        measure(running, 50, 50.0, list(SHARES), "warm")
        running.until_quiet()
        results = {name: measure(running, args.requests, args.rate, kinds, name) for name, kinds in rounds.items()}
    if args.json:
        print(json.dumps({"benchmark": "intake_load", "rounds": results}))
        return 0
    for name, result in results.items():
        _print(name, result)
    return 0


def _print(name: str, result: dict[str, Any]) -> None:
    print(
        f"{name}: {result['achieved_per_s']:.0f} of {result['offered_per_s']:.0f} requests/s, CPU ms a request: "
        f"server {result['server_cpu_ms']:.2f}, client {result['client_cpu_ms']:.2f}; accepted {result['accepted']}, "
        f"landed once {result['landed_once']}, sent again {result['sent_again']}, load {result['load_average']:.1f}"
    )
    print(f"  statuses {result['statuses']}")
    for kind, found in {"late": result["late_ms"], **result["latency_ms"]}.items():
        print(f"  {kind:<10}" + ", ".join(f"{at} {value:.0f} ms" for at, value in found.items()))


if __name__ == "__main__":
    sys.exit(main())
