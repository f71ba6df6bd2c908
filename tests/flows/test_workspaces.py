"""The lock that lets one run at a time into a workspace."""

from __future__ import annotations

from pathlib import Path

import pytest
from filelock import Timeout

from data_contracts.errors import WorkspaceBusy
from flows.workspaces import exclusive_run


def test_a_second_run_is_refused_and_the_next_one_let_in(tmp_path: Path) -> None:
    with (
        exclusive_run(tmp_path),
        pytest.raises(WorkspaceBusy, match="another run is under way"),
        exclusive_run(tmp_path),
    ):
        pytest.fail("two runs in one workspace")
    with exclusive_run(tmp_path):
        pass


def test_the_timeout_of_another_lock_is_not_told_as_a_busy_workspace(tmp_path: Path) -> None:
    with pytest.raises(Timeout), exclusive_run(tmp_path):
        raise Timeout("other.lock")
    with exclusive_run(tmp_path):  # and the workspace was let go of
        pass
