"""The whole demo in a fresh workspace: seconds in all and a stage, and what the policy learned.

`python -m benchmarks.demo --json`. Installation is excluded; everything else (Prefect's temporary
server, imports, training, evaluation, registration) is counted, as a user of `make demo` sees it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def run_demo(settings: list[str]) -> dict[str, Any]:
    """Make a workspace, retrain in it, return the report with the wall-clock seconds around the command."""
    program = Path(sys.executable).with_name("plumbline")
    overrides = [part for setting in settings for part in ("--set", setting)]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([program, "init", folder, "--sample-world"], check=True, capture_output=True)
        start = time.perf_counter()
        done = subprocess.run(
            [program, "retrain", "-C", folder, "--json", *overrides], check=True, capture_output=True, text=True
        )
        seconds = time.perf_counter() - start
    report: dict[str, Any] = json.loads(done.stdout)
    metrics = report["metrics"]
    return {
        "benchmark": "demo",
        "seconds": round(seconds, 1),
        "stages": {stage["name"]: stage["seconds"] for stage in report["stages"]},
        "gold_win_rate": metrics["win_rate"]["gold"],
        "judge_win_rate": metrics["win_rate"]["judge"],
        "preference_accuracy": metrics["preference"]["accuracy"],
        "reward_accuracy": metrics["reward_audit"]["accuracy"],
        "kl_nats_per_token": metrics["divergence"]["kl_nats_per_token"],
        "refusal_accuracy": metrics["safety"]["policy"]["refusal_accuracy"],
        "over_refusal": metrics["safety"]["policy"]["over_refusal"],
    }


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark and print its result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE over params.yaml; repeatable")
    args = parser.parse_args(argv)
    result = run_demo(args.set)
    if args.json:
        print(json.dumps(result))
    else:
        win = result["gold_win_rate"]
        print(f"{result['seconds']} s, gold win rate {win['value']:.3f} [{win['low']:.3f}, {win['high']:.3f}]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
