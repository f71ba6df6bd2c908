"""Commands that only look: for another user who may read, and in a workspace on a read-only mount."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest

from tests.flows.conftest import BIN, Trained, Workspace, write_hh_pairs

RIGHTS = ("--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search")
READER = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", *RIGHTS)
MOUNT = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && ! touch "$0/written" 2>/dev/null && exec "$@"'
COMMANDS = (
    ("audit", "models:/assistant@champion"),
    ("audit", "assistant", "--format", "html", "--out", "lineage.html"),
    ("audit", "--annotator", "ann-01"),
    ("history",),
    ("traffic",),
    ("outbox", "list"),
    ("canary", "list"),
    ("live",),
    ("validate", "human_pairs", "pairs.jsonl"),
    ("retrain", "--dry-run"),
    ("restore", "assistant", "--to", "restored"),
)

Reader = Callable[..., subprocess.CompletedProcess[str]]


def state_of(root: Path) -> dict[str, tuple[int, int]]:
    """Every file with its size and time stamp."""
    found = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {path.relative_to(root).as_posix(): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


@pytest.fixture(scope="module")
def read_only(trained: Trained) -> Iterator[Workspace]:
    """A copy that its owner lets others read; nothing in it may change."""
    with tempfile.TemporaryDirectory(prefix="plumbline-reader-") as folder:
        copy = trained.copy(Path(folder) / "workspace")
        subprocess.run(["chmod", "-R", "go+rX", copy.root], check=True)
        before = state_of(copy.root)
        yield copy
        assert state_of(copy.root) == before


@pytest.fixture(params=["another user", "read-only mount"])
def reader(request: pytest.FixtureRequest, read_only: Workspace) -> Iterator[Reader]:
    """Run `plumbline` there in a folder of the reader's own."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None or shutil.which("unshare") is None:
        pytest.skip("needs root, setpriv and unshare")
    root = str(read_only.root)
    mounted = request.param == "read-only mount"
    prefix = ("unshare", "-m", "bash", "-c", MOUNT, root) if mounted else READER
    if mounted and subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a mount cannot be made here")
    with tempfile.TemporaryDirectory(prefix="plumbline-home-") as home:
        Path(root).parent.chmod(0o755)
        os.chown(home, 0 if mounted else 65534, -1)
        write_hh_pairs(Path(home) / "pairs.jsonl", 24, seed=5).chmod(0o644)
        environment = {**os.environ, "HOME": home, "TMPDIR": home, "XDG_CACHE_HOME": f"{home}/cache"}
        if not mounted:
            del environment["XDG_CONFIG_HOME"]  # an auditor has no key of this workspace

        def run(*arguments: str) -> subprocess.CompletedProcess[str]:
            command = [*prefix, str(BIN / "plumbline"), *arguments, "-C", root]
            return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)

        yield run


@pytest.mark.long
def test_every_command_that_looks_works(reader: Reader) -> None:
    for command in COMMANDS:
        done = reader(*command, *([] if "--format" in command else ["--json"]))
        assert done.returncode in ((0, 1) if "--annotator" in command else (0,)), (command, done.stderr)
        assert "Traceback" not in done.stderr, command
        if command[:2] == ("audit", "models:/assistant@champion"):
            assert orjson.loads(done.stdout)["verified"] is True
        if command[0] == "validate":
            assert Path(orjson.loads(done.stdout)["quarantine_path"]).is_file()


@pytest.mark.long
def test_doctor_and_status_look_without_writing(reader: Reader) -> None:
    found = {item["name"]: item for item in orjson.loads(reader("doctor", "--json").stdout)["findings"]}
    assert found["workspace"]["ok"]
    assert found["mlflow store"]["ok"]
    assert found["dvc remote"]["ok"]
    assert {row["state"] for row in orjson.loads(reader("status", "--json").stdout)["services"]} == {"not started"}


@pytest.mark.parametrize(
    "command", [("rollback", "--reason", "why"), ("retrain",), ("ingest", "human_pairs", "pairs.jsonl")]
)
def test_what_has_to_write_names_the_file_and_the_permission(reader: Reader, command: tuple[str, ...]) -> None:
    done = reader(*command)
    assert done.returncode not in (0, 1)
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "read-only" in done.stderr or "no permission" in done.stderr, done.stderr
