"""The whole loop on a tiny world: one trained workspace for the session, and ways to run the command line.

The loop runs once as a person runs it, in a process of its own. Tests that change the workspace
take a copy; commands whose process adds nothing run inside this one, against the same Prefect server.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import orjson
import psutil
import pytest

from plumbline.flows.cli.main import main
from plumbline.tasks.operations.announce import EVENTS, workspace_id
from plumbline.tasks.operations.freshness.outbox import OutboxEntry
from plumbline.tasks.params.document import save_params
from plumbline.tasks.params.layers import load_params
from plumbline.tasks.storage.versioning.lock import current_hashes
from tests.support.once import copy_workspace, made_once

TINY = Path(__file__).with_name("tiny.yaml")
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def payload(self) -> dict[str, Any]:
        """The JSON object on stdout; anything else there is an error."""
        loaded: dict[str, Any] = orjson.loads(self.out)
        return loaded

    @property
    def redone(self) -> list[str]:
        """Stages that a `retrain --json` did not reuse."""
        assert self.code in (0, 1), self.err
        return [stage["name"] for stage in self.payload["stages"] if not stage["reused"]]


@dataclass(frozen=True)
class Workspace:
    """A workspace and the command line inside it. `shell` starts processes, `run` stays in this one."""

    root: Path
    server: str

    def run(self, *arguments: object) -> Done:
        from prefect.settings import PREFECT_API_URL, temporary_settings

        out, err = io.StringIO(), io.StringIO()
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.chdir(self.root),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            temporary_settings({PREFECT_API_URL: self.server}),
            pytest.raises(SystemExit) as ended,
        ):
            patch.setattr(sys, "argv", ["plumbline", *map(str, arguments)])
            main()
            raise SystemExit(0)
        code = ended.value.code or 0
        assert isinstance(code, int)
        return Done(code, out.getvalue(), err.getvalue())

    def shell(self, program: str, *arguments: object) -> Done:
        with self.start(program, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            out, err = process.communicate(timeout=600)
        return Done(process.returncode, out.decode(), err.decode())

    def start(self, program: str, *arguments: object, **streams: Any) -> subprocess.Popen[bytes]:
        paths = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PREFECT_API_URL": self.server, "PATH": paths}
        command = [shutil.which(program, path=paths) or program, *map(str, arguments)]
        # umask 0: whatever a person has set, files of a workspace are private
        return subprocess.Popen(command, cwd=self.root, env=environment, umask=0, **streams)

    def kill_when(self, sign: str, *command: object) -> None:
        """SIGKILL to `plumbline COMMAND`, and to it alone, as soon as a path shows that a stage is at work.

        What it started has ended by the time this returns, a process that leads a group of its own among it.
        """
        with tempfile.TemporaryFile() as log, self.start("plumbline", *command, stdout=log, stderr=log) as process:
            try:
                until(lambda: next(self.root.glob(sign), None) is not None or process.poll() is not None)
                log.seek(0)
                assert process.poll() is None, log.read().decode()
                family = psutil.Process(process.pid).children(recursive=True)
                trainers = [child for child in family if _leads_group(child)]
            finally:
                process.kill()
        assert process.returncode == -signal.SIGKILL
        assert trainers, "no stage was at work"
        until(lambda: all(is_gone(child) for child in family))

    def set_params(self, *settings: str, overlays: Sequence[Path] = ()) -> None:
        """Write params without running anything."""
        save_params(self.root, load_params(self.root, overlays, settings)[1])

    def hashes(self) -> dict[str, str]:
        """DVC hash of every output and of raw feedback."""
        return current_hashes(self.root)

    def copy(self, root: Path) -> Workspace:
        """A workspace of its own with the same history, registered models included."""
        shutil.copytree(self.root, root, symlinks=True)
        return Workspace(root, self.server)

    def lines(self, path: str) -> list[dict[str, Any]]:
        """Records of a JSON lines file."""
        return [orjson.loads(line) for line in (self.root / path).read_bytes().splitlines()]


@dataclass(frozen=True)
class Trained(Workspace):
    """The session's workspace after its one retraining run. Shared: leave it as it is."""

    first: Done


def until(condition: Callable[[], Any], seconds: float = 300.0, every_s: float = 0.005) -> Any:
    """Wait for what a condition finds, and return it."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(every_s)
    return found


def is_gone(process: psutil.Process) -> bool:
    """Whether a process ended, reaped or not."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def writers(log: Path) -> list[psutil.Process]:
    """Processes whose output goes to this log of a stage: its trainer and what that started."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if str(log) in {file.path for file in process.open_files()}:
                found.append(process)
    return found


def _leads_group(process: psutil.Process) -> bool:
    try:
        return os.getpgid(process.pid) == process.pid
    except ProcessLookupError:
        return False


def finding_event(root: Path, entry: OutboxEntry) -> dict[str, Any]:
    """The event of a finding as the outbox sends it, to send it again."""
    return {
        "id": entry.event_id,
        "event": EVENTS["finding"],
        "occurred": entry.created_at.isoformat(),
        "resource": {"prefect.resource.id": f"plumbline.workspace.{workspace_id(root)}"},
        "payload": {"key": entry.key},
    }


def write_hh_pairs(path: Path, count: int, seed: int) -> Path:
    """Pairs as Anthropic HH text on prompts of made-up words, so that no two are alike."""
    rng = Random(seed)

    def words(number: int) -> str:
        return " ".join("".join(rng.choices("abcdefghiklmnoprstu", k=5)) for _ in range(number))

    with path.open("wb") as file:
        for _ in range(count):
            prompt = f"\n\nHuman: {words(6)}?\n\nAssistant: "
            row = {"chosen": f"{prompt}{words(4)}.", "rejected": f"{prompt}{words(5)}."}
            file.write(orjson.dumps(row) + b"\n")
    return path


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory, server: str) -> Callable[[str], Workspace]:
    """Make a workspace with one ingested batch, in which nothing ran yet."""
    batch = write_hh_pairs(tmp_path_factory.mktemp("feedback") / "first.jsonl", 24, seed=1)

    def make(name: str) -> Workspace:
        workspace = Workspace(tmp_path_factory.mktemp(name), server)
        assert workspace.run("init", ".", "--sample-world").code == 0
        assert workspace.run("ingest", "human_pairs", batch).code == 0
        return workspace

    return make


@pytest.fixture(scope="session")
def trained(fresh: Callable[[str], Workspace], tmp_path_factory: pytest.TempPathFactory, server: str) -> Trained:
    """`plumbline retrain --params tiny.yaml --json` in a process of its own, once for all workers."""

    def make(folder: Path) -> None:
        workspace = fresh("trained")
        first = workspace.shell("plumbline", "retrain", "--params", TINY, "--json")
        assert first.code == 0, first.err
        shutil.copytree(workspace.root, folder / "workspace", symlinks=True)
        (folder / "first.json").write_bytes(orjson.dumps(first))

    kept = made_once("trained", (TINY, Path(__file__)), make, tmp_path_factory.mktemp("made") / "trained")
    root = tmp_path_factory.mktemp("trained") / "workspace"
    copy_workspace(kept / "workspace", root)
    return Trained(root, server, Done(**orjson.loads((kept / "first.json").read_bytes())))


@pytest.fixture
def copy(trained: Trained, tmp_path: Path) -> Workspace:
    """A copy of the trained workspace, to change at will."""
    return trained.copy(tmp_path / "copy")
