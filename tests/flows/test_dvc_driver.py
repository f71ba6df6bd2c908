"""One graph, two drivers: `dvc repro` and `plumbline retrain` leave the same record and reuse each other's work."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from plumbline.flows.graph.stages import STAGES
from plumbline.tasks.storage.versioning.git import commit_git
from plumbline.tasks.storage.versioning.lock import read_lock
from tests.flows.conftest import TINY, Trained, Workspace


def test_after_a_flow_dvc_has_nothing_to_do(trained: Trained) -> None:
    before = (trained.root / "dvc.lock").read_bytes()
    done = trained.shell("dvc", "repro")
    assert done.code == 0, done.err
    assert "up to date" in done.out + done.err
    assert "Running stage" not in done.out
    assert (trained.root / "dvc.lock").read_bytes() == before


@pytest.fixture(scope="module")
def reproduced(fresh: Callable[[str], Workspace]) -> Workspace:
    """A fresh workspace in which DVC alone ran everything."""
    workspace = fresh("reproduced")
    workspace.set_params(overlays=[TINY])
    done = workspace.shell("dvc", "repro")
    assert done.code == 0, done.err
    assert done.out.count("Running stage") == len(STAGES) + 1, "the params, then every stage"
    return workspace


def test_both_drivers_write_the_same_bytes(reproduced: Workspace, trained: Trained) -> None:
    """Two workspaces, two drivers, one `dvc.lock`: the loop is deterministic to the bit."""
    assert reproduced.hashes() == trained.hashes()
    # As data: for a param without a value one driver's process writes `null`, the other's nothing.
    assert read_lock(reproduced.root) == read_lock(trained.root)


@pytest.mark.long
def test_after_dvc_a_flow_reuses_everything(reproduced: Workspace, trained: Trained) -> None:
    done = reproduced.run("retrain", "--json")
    assert done.redone == []
    assert done.payload["metrics"] == trained.first.payload["metrics"]
    assert done.payload["alias_uris"] == ["models:/assistant@candidate", "models:/assistant@champion"]


@pytest.mark.long
def test_a_clone_pulls_the_same_objects_and_reuses_everything(copy: Workspace, trained: Trained) -> None:
    """git carries the record, the DVC remote the objects; nothing else reaches the second folder."""
    commit_git(copy.root, "Trained")
    clone = Workspace(copy.root.with_name("clone"), copy.server)
    subprocess.run(["git", "clone", "--quiet", copy.root, clone.root], check=True)
    assert not (clone.root / "models/policy").exists()

    # the default remote is the clone's own, so that nothing is pushed into the original
    assert clone.run("init", ".").code == 0
    pulled = clone.shell("dvc", "pull", "-r", "origin")
    assert pulled.code == 0, pulled.err
    for name in (*(stage.out for stage in STAGES.values()), "data/raw"):
        theirs = {path.relative_to(copy.root): path.read_bytes() for path in _files(copy, name)}
        assert {path.relative_to(clone.root): path.read_bytes() for path in _files(clone, name)} == theirs
    assert clone.run("retrain", "--json").redone == []
    assert clone.hashes() == trained.hashes()


def _files(workspace: Workspace, name: str) -> list[Path]:
    return [path for path in (workspace.root / name).rglob("*") if path.is_file()]
