"""Becoming a service, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
_SHOW = "import signal; print(signal.getsignal(signal.SIGINT) == signal.SIG_IGN)"


def test_a_service_of_a_background_job_still_hears_sigint(tmp_path: Path) -> None:
    """`sh -c 'trap "" INT; exec …'` is what a shell does for a job in the background."""
    service = {"command": [sys.executable, "-c", _SHOW], "environment": {}, "secrets": {}}
    (tmp_path / "plan.json").write_text(json.dumps({"root": str(tmp_path), "services": {"worker": service}}))
    launch = f"{sys.executable} -m tasks.services.launch worker digest"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        ["sh", "-c", f"trap '' INT; exec {launch}"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "False\n", done.stderr
