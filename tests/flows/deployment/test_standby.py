"""A process that waits for its run: what it becomes, and when it does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[3]
_ENGINE = """
import json, os, sys
open(os.environ.get("IMPORTED", os.devnull), "w").close()
if __name__ == "__main__":
    warm = "plumbline.flows.deployment.standby" in sys.modules
    told = {"pid": os.getpid(), "environment": dict(os.environ), "argv": sys.argv[1:], "warm": warm}
    told["stdin"] = sys.stdin.read()
    open(os.environ["ANSWER"], "w").write(json.dumps(told))
    sys.exit(7)
"""
_WAIT = """
from plumbline.flows.deployment import standby
standby.ENGINE, standby.NEEDED, standby._OURS = "engine", (), "engine"
standby.main(["engine:flow"])
"""


def _start(folder: Path) -> subprocess.Popen[bytes]:
    """A standby, up to reading its input, whose engine says what it is told and ends with 7."""
    (folder / "engine.py").write_text(_ENGINE)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(REPOSITORY)])}
    environment["IMPORTED"] = str(folder / "imported")
    return subprocess.Popen([sys.executable, "-c", _WAIT], stdin=subprocess.PIPE, env=environment)


def _tell(process: subprocess.Popen[bytes], folder: Path) -> dict[str, Any]:
    answer = folder / "answer.json"
    run = {"ANSWER": str(answer), "PYTHONPATH": str(folder), "PREFECT__FLOW_RUN_ID": "1", "PATH": os.environ["PATH"]}
    process.communicate(json.dumps(run).encode(), timeout=120)
    assert process.returncode == 7
    told: dict[str, Any] = json.loads(answer.read_text())
    assert (told["pid"], told["stdin"], told["argv"]) == (process.pid, "", [])
    assert {name: told["environment"].get(name) for name in (*run, "IMPORTED")} == {**run, "IMPORTED": None}
    return told


def test_it_becomes_the_engine_with_the_environment_of_the_run_alone(tmp_path: Path) -> None:
    assert _tell(_start(tmp_path), tmp_path)["warm"]


def test_changed_code_is_not_run_from_memory(tmp_path: Path) -> None:
    """The process begins anew, with its pid: what ran in memory was the code of before."""
    process = _start(tmp_path)
    while not (tmp_path / "imported").exists():
        assert process.poll() is None
        time.sleep(0.1)
    (tmp_path / "engine.py").write_text(_ENGINE + "# another release\n")
    assert not _tell(process, tmp_path)["warm"]


def test_it_ends_when_nobody_can_tell_it_a_run_any_more(tmp_path: Path) -> None:
    process = _start(tmp_path)
    process.communicate(b"", timeout=120)
    assert process.returncode == 0
