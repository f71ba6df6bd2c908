"""What a run would end with that has nothing to do, and everything that makes it have something to do."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from plumbline.data_contracts.artifact import MANIFEST
from plumbline.data_contracts.errors import VersioningError
from plumbline.flows.graph.up_to_date import up_to_date
from plumbline.flows.graph.workspaces import exclusive_run
from plumbline.tasks.data.feedback.batches import store_batch
from plumbline.tasks.operations import settle_champion
from plumbline.tasks.operations.settle_champion import Settled
from plumbline.tasks.params.layers import load_params
from tests.flows.conftest import Done, Trained, Workspace, write_hh_pairs

NOWHERE = "http://127.0.0.1:9/api"
_RETRAIN = """
import resource, sys
from plumbline.flows.cli.main import main
sys.argv = ["plumbline", "retrain", "--json"]
try:
    main()
finally:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
    heavy = [name for name in ("prefect", "mlflow", "torch", "transformers", "trl") if name in sys.modules]
    sys.stderr.write(f"\\nCPU {cpu} HEAVY {heavy}\\n")
"""


def _look(workspace: Workspace, *settings: str) -> Settled | None:
    if settings:
        workspace.set_params(*settings)
    return up_to_date(workspace.root, load_params(workspace.root)[0])


def test_a_run_with_nothing_to_do_needs_no_server_and_a_few_seconds(trained: Trained) -> None:
    """It answered after 18 s of CPU; 6 s are promised. Nothing is logged to MLflow, and no server is asked."""
    before = _runs(trained.root)
    done = Workspace(trained.root, NOWHERE).shell(sys.executable, "-c", _RETRAIN)
    assert done.code == 0, done.err
    assert done.payload["model_uri"] == trained.first.payload["model_uri"]
    assert done.payload["alias_uris"] == trained.first.payload["alias_uris"]
    assert done.payload["metrics"] == trained.first.payload["metrics"]
    assert done.redone == []
    assert "Nothing to do" in done.err
    cpu, heavy = done.err.rpartition("CPU ")[2].split(" HEAVY ")
    assert heavy.strip() == "[]"
    assert float(cpu) < 6.0
    assert _runs(trained.root) == before


def _runs(root: Path) -> int:
    with sqlite3.connect(root / ".plumbline/mlflow.db") as connection:
        return int(connection.execute("SELECT count(*) FROM runs").fetchone()[0])


def _no_output(root: Path) -> None:
    shutil.rmtree(root / "models/policy")


def _no_object(root: Path) -> None:
    digest = Workspace(root, NOWHERE).hashes()["reports/gate"]
    (root / ".dvc/cache/files/md5" / digest[:2] / digest[2:]).unlink()


def _arrived(root: Path) -> None:
    store_batch(write_hh_pairs(root.parent / "more.jsonl", 3, seed=7), "human_pairs", root / ".plumbline/arrived")


def _no_version(root: Path) -> None:
    (root / ".plumbline/mlflow.db").unlink()
    (root / ".plumbline/operations.db").unlink(missing_ok=True)


def _unsigned(root: Path) -> None:
    for path in (root / ".plumbline").rglob("model.sig"):
        path.unlink()


def _unsealed(root: Path) -> None:
    with sqlite3.connect(root / ".plumbline/mlflow.db") as connection:
        assert connection.execute("DELETE FROM model_version_tags WHERE key = 'plumbline.seal'").rowcount == 1


@pytest.mark.parametrize("spoil", [_no_output, _no_object, _arrived, _no_version, _unsigned, _unsealed])
def test_what_a_run_would_mend_is_something_to_do(copy: Workspace, spoil: Callable[[Path], None]) -> None:
    spoil(copy.root)
    assert _look(copy) is None


def test_a_changed_param_is_something_to_do(copy: Workspace) -> None:
    """A param that no stage reads is none."""
    assert _look(copy, "gate.min_prompts=17") is None
    assert _look(copy, "gate.min_prompts=16", "services.prefect_port=4321") is not None


def test_a_file_that_params_name_is_read_each_time(copy: Workspace, tmp_path: Path) -> None:
    feedback = write_hh_pairs(tmp_path / "own.jsonl", 3, seed=9)
    assert _look(copy, f"feedback.path={feedback}") is None
    assert (copy.root / "data/raw/human_pairs").is_dir()
    raw = copy.hashes()["data/raw"]
    write_hh_pairs(feedback, 4, seed=9)
    assert _look(copy) is None
    assert copy.hashes()["data/raw"] != raw


def test_a_run_that_follows_does_not_read_the_file_again(copy: Workspace, tmp_path: Path) -> None:
    """A pipe can be read once: a second look at it would wait for a writer without end."""
    rows = write_hh_pairs(tmp_path / "first.jsonl", 24, seed=1).read_bytes()  # the batch that is there
    pipe = tmp_path / "own.jsonl"
    os.mkfifo(pipe)
    settings = ("--set", f"feedback.path={pipe}", "--json")
    with copy.start("plumbline", "retrain", *settings, stdout=subprocess.PIPE) as run:
        pipe.write_bytes(rows)
        try:
            out, _ = run.communicate(timeout=300)
        finally:
            run.kill()
    assert Done(run.returncode, out.decode(), "").redone == ["validate"]


def test_a_version_that_is_to_be_the_first_champion_is_something_to_do(
    copy: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settle_champion, "had_champion", lambda root, params: False)
    assert _look(copy) is None


def test_what_a_run_refuses_is_refused_at_once(copy: Workspace) -> None:
    """An output edited by hand, and a workspace that params want committed."""
    gate = next(path for path in (copy.root / "reports/gate").iterdir() if path.name != MANIFEST)
    gate.chmod(0o644)
    gate.write_bytes(gate.read_bytes() + b" ")
    with pytest.raises(VersioningError, match="reports/gate was edited by hand"):
        _look(copy)
    with pytest.raises(VersioningError, match="Commit them"):
        _look(copy, "registry.on_dirty=refuse")


def test_no_run_may_be_under_way_in_the_workspace(copy: Workspace) -> None:
    with exclusive_run(copy.root):
        done = copy.shell("plumbline", "retrain", "--json")
    assert done.code != 0
    assert done.payload["error"]["kind"] == "WorkspaceBusy"
