"""A process that calls a command's verbs: set up as the command's own while they run, and as it was afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from plumbline.data_contracts.errors import StageError
from plumbline.flows.cli.process import borrowed_process
from plumbline.tasks.operations.services.temporary import TEMPORARY

_SCRIPT = """
import multiprocessing, os
from plumbline.flows.cli.process import borrowed_process
print("main", flush=True)
with borrowed_process():
    child = multiprocessing.get_context("spawn").Process(target=os.getpid)
    child.start()
    child.join()
print(child.exitcode, __file__ is not None, __spec__)
"""


def test_variables_and_umask_are_a_commands_inside_and_the_callers_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    monkeypatch.setenv("DO_NOT_TRACK", "0")
    before, mask = dict(os.environ), os.umask(0o022)
    try:
        with borrowed_process():
            assert os.environ["PYTHONSAFEPATH"] == "1"
            assert os.environ["DO_NOT_TRACK"] == "0"
            assert os.umask(0o077) == 0o077
            os.environ["DO_NOT_TRACK"] = "2"
        assert dict(os.environ) == before
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(mask)


def test_a_temporary_server_stays_for_the_next_call(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING", TEMPORARY):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    with borrowed_process():
        os.environ["PREFECT_API_URL"] = os.environ[TEMPORARY] = "http://127.0.0.1:1/api"
    assert os.environ["PREFECT_API_URL"] == "http://127.0.0.1:1/api"


def test_what_the_system_refuses_is_an_error_of_ours() -> None:
    with pytest.raises(StageError, match="no permission"), borrowed_process():
        raise PermissionError(13, "Permission denied", "/etc/shadow")


def test_children_do_not_run_a_script_without_a_guard_again(tmp_path: Path) -> None:
    """multiprocessing imports the caller's script in each child, which would start the whole run once more."""
    (tmp_path / "script.py").write_text(_SCRIPT)
    command = [sys.executable, "script.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "main\n0 True None\n"), done.stderr
