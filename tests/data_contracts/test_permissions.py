"""A refusal by permissions names the file or folder that refuses, whose it is and what may be done."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from plumbline.data_contracts import permissions
from plumbline.data_contracts.errors import StageError
from plumbline.data_contracts.permissions import permissions_as_errors

_EXPLAIN = """
import errno, sys
from plumbline.data_contracts.permissions import explain_denied
print(explain_denied(PermissionError(errno.EACCES, "Permission denied", sys.argv[1])))
"""


@pytest.mark.parametrize(
    ("closed", "said"),
    [
        ("folder", "may not enter {folder} (mode 0700 of user 0, group 0)"),
        ("file", "may not read {file} (mode 0600 of user 0, group 0)"),
        ("nothing", "may not change {file} (mode 0644 of user 0, group 0)"),
        ("missing", "may not write into {folder} (mode 0755 of user 0, group 0)"),
    ],
)
def test_the_topmost_barrier_is_named(tmp_path: Path, closed: str, said: str) -> None:
    if os.geteuid() != 0 or shutil.which("setpriv") is None or not Path("/usr/bin/python3").exists():
        pytest.skip("needs root, setpriv and the system's Python, to act as another user")
    home = Path("/tmp") / f"plumbline-barrier-{os.getpid()}"
    code, folder = home / "code", home / "folder"
    file = folder / "database"
    try:
        (code / "plumbline/data_contracts").mkdir(parents=True)
        folder.mkdir()
        file.write_text("")
        for name in ("permissions.py", "errors.py"):
            shutil.copy(Path(permissions.__file__).with_name(name), code / "plumbline/data_contracts")
        subprocess.run(["chmod", "-R", "a+rX", str(home)], check=True)
        folder.chmod(0o700 if closed == "folder" else 0o755)
        file.chmod(0o600 if closed == "file" else 0o644)
        if closed == "missing":
            file.unlink()
        stranger = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "/usr/bin/python3"]
        done = subprocess.run(
            [*stranger, "-c", _EXPLAIN, str(file)],
            env={"PYTHONPATH": str(code)},
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        shutil.rmtree(home)
    assert said.format(folder=folder, file=file) in done.stdout, done.stderr
    assert "user 65534" in done.stdout


def test_a_read_only_file_system_is_called_so() -> None:
    with (
        pytest.raises(StageError, match="/media/x: expected to write there, found a read-only file system"),
        permissions_as_errors(),
    ):
        raise OSError(errno.EROFS, "Read-only file system", "/media/x")


def test_other_refusals_pass_through() -> None:
    with pytest.raises(IsADirectoryError), permissions_as_errors():
        raise OSError(errno.EISDIR, "Is a directory", "/media/x")
