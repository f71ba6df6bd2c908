"""Becoming a service, in a process of its own, in place of all that its last one left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from plumbline.tasks.operations.services.processes import MARK, SERVICE_MARK

REPOSITORY = Path(__file__).resolve().parents[4]
_SHOW = "import signal; print(signal.getsignal(signal.SIGINT) == signal.SIG_IGN)"


def test_a_service_of_a_background_job_still_hears_sigint(tmp_path: Path) -> None:
    """`sh -c 'trap "" INT; exec …'` is what a shell does for a job in the background."""
    assert _launched(tmp_path, "worker", _SHOW, "trap '' INT; ") == "False\n"


def test_what_the_last_process_left_is_ended_before_the_service_starts(tmp_path: Path) -> None:
    """As the child of MLflow that answers, which lives on when MLflow's own process is killed."""
    left, others, elsewhere = _wait(tmp_path, "mlflow"), _wait(tmp_path, "prefect"), _wait(tmp_path / "b", "mlflow")
    try:
        code = f"import os; print(os.environ[{SERVICE_MARK!r}])"
        assert _launched(tmp_path, "mlflow", code) == "mlflow\n"
        assert left.poll() == -signal.SIGTERM
        assert (others.poll(), elsewhere.poll()) == (None, None)
    finally:
        for process in (left, others, elsewhere):
            process.kill()
            process.wait(30)


def _launched(folder: Path, name: str, code: str, shell: str = "") -> str:
    """What a service of this code says, started as the supervisor of this folder starts it."""
    service = {"command": [sys.executable, "-c", code], "environment": {}, "secrets": {}}
    plan = {"root": str(folder), "stop_timeout_s": 20, "services": {name: service}}
    (folder / "plan.json").write_text(json.dumps(plan))
    done = subprocess.run(
        ["sh", "-c", f"{shell}exec {sys.executable} -m plumbline.tasks.operations.services.launch {name} digest"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), MARK: str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _wait(folder: Path, service: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, MARK: str(folder), SERVICE_MARK: service}
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env=environment)
