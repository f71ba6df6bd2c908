"""SIGKILL at every boundary of every stage, in training, in the push and in the registration of one workspace.

After each kill nothing of the run lives on; after all of them the last run ends as one that nobody disturbed.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest

from plumbline.data_contracts.artifact import verify_artifact
from plumbline.flows.graph.stages import STAGES
from plumbline.tasks.operations.admit_run import open_outbox
from plumbline.tasks.operations.announce import request_retraining
from plumbline.tasks.operations.freshness.admission import runs
from plumbline.tasks.params.layers import load_params
from plumbline.tasks.registry.store.client import Store
from plumbline.tasks.registry.versions.registered import all_versions
from tests.flows import victim
from tests.flows.conftest import TINY, Trained, Workspace, until

pytestmark = pytest.mark.timeout(3600)  # forty runs of a few seconds each, where the machine has time for them
REPOSITORY = Path(__file__).resolve().parents[2]
MARK = "PLUMBLINE_TEST_KILLS"
SEED = 20
TRAINING = ("base", "reference", "reward", "finetune")
REGISTRATION = (
    ("pushing", 1),
    ("pushing", 20),
    ("in_mlflow", "create_logged_model", 1),
    ("in_mlflow", "log_model_artifacts", 2),
    ("in_mlflow", "log_model_artifacts", 5),
    ("in_mlflow", "create_model_version", 1),
    ("in_mlflow", "set_model_version_tag", 1),
    ("in_mlflow", "set_registered_model_alias", 1),
)


def kills() -> Iterator[tuple[Any, ...]]:
    """Every kill in the order of the pipeline; the points inside training are drawn, by a seed."""
    drawn = random.Random(SEED)
    yield ("in_migration", 5)
    for number, name in enumerate(STAGES):
        yield ("before", name)
        if name in TRAINING:
            for who in ("trainer", "flow"):
                yield ("at_work", name, drawn.uniform(0.1, 0.8), who)
        if number % 2:
            yield ("uncommitted", name)
            yield ("committed", name)
        else:
            yield ("unrecorded", name)  # the next run finds it in DVC's run-cache and has nothing to commit
    yield from REGISTRATION


@pytest.fixture(scope="module")
def chosen(at_full_size: bool, long_seed: int) -> list[tuple[Any, ...]]:
    """All kills, or eight that a seed draws: one in training, one in the registration, six anywhere."""
    everywhere = list(kills())
    if at_full_size:
        return everywhere
    draw = random.Random(long_seed)
    in_training = draw.choice([kill for kill in everywhere if kill[0] == "at_work"])
    some = {in_training, draw.choice(REGISTRATION)}
    some |= set(draw.sample([kill for kill in everywhere if kill not in some], 6))
    return [kill for kill in everywhere if kill in some]


@dataclass
class Victims:
    """`tests.flows.victim` at work: it starts runs, and what lives beside its own two servers is an orphan."""

    process: subprocess.Popen[bytes]
    mark: str
    log: Path
    own: set[int] = field(default_factory=set)

    def run(self, root: Path, kill: tuple[Any, ...] | None = None, *, poll: bool = False) -> int:
        """The exit code of a run, or minus the signal that ended it, once nothing of it lives."""
        assert self.process.stdin is not None
        order = {"root": str(root), "log": str(self.log), "kill": kill, "poll": poll}
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        self.process.stdin.flush()
        code = int(self.answer())
        until(lambda: not self.marked() - self.own, 60, every_s=0.02)
        return code

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().strip()

    def marked(self) -> set[int]:
        return {process.pid for process in psutil.process_iter() if self._is_marked(process)}

    def _is_marked(self, process: psutil.Process) -> bool:
        try:
            return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == self.mark
        except (psutil.Error, OSError):
            return False


@pytest.fixture(scope="module")
def victims(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victims]:
    mark = str(uuid.uuid4())
    # children of ours do not import from the current folder, where this test's own program is
    environment = {**os.environ, "PREFECT_API_URL": server, "PYTHONPATH": str(REPOSITORY), MARK: mark}
    command = [sys.executable, "-m", victim.__name__]
    with subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        made = Victims(process, mark, tmp_path_factory.mktemp("victims") / "log")
        assert made.answer() == "ready"
        made.own = made.marked()
        yield made
        assert process.stdin is not None
        process.stdin.close()
        process.wait(60)


@dataclass(frozen=True)
class Killed(Workspace):
    """A workspace after all kills and one run that nobody disturbed."""

    landed: list[tuple[Any, ...]]
    last: dict[str, Any]


@pytest.fixture(scope="module")
def killed(fresh: Callable[[str], Workspace], victims: Victims, chosen: list[tuple[Any, ...]]) -> Killed:
    workspace = fresh("killed")
    workspace.set_params(overlays=[TINY])
    landed = []
    for kill in chosen:
        code = victims.run(workspace.root, kill)
        of_trainer = kill[-1] == "trainer" and "exit code -9" in victims.log.read_text()
        hit = code == (3 if of_trainer else -9)
        assert hit or code == victim.MISSED, (kill, code, victims.log.read_text()[-2000:])
        if hit:
            landed.append(kill)
        if kill == ("committed", "curate"):
            workspace.kill_when("models/.reference.draft-*", "retrain")  # one with a fork server of its own
    assert victims.run(workspace.root) == 0, victims.log.read_text()[-2000:]
    lines = victims.log.read_text().splitlines()
    return Killed(workspace.root, workspace.server, landed, orjson.loads("".join(lines[lines.index("{") :])))


def test_the_graph_is_known_to_the_victim() -> None:
    assert tuple(STAGES) == victim.STAGES


@pytest.mark.long(keep=99)
def test_the_kills_struck_at_every_boundary_and_in_training(killed: Killed, chosen: list[tuple[Any, ...]]) -> None:
    """One of a trainer may come too late on a busy machine: then its stage is done, and has no place for its others."""
    assert len(killed.landed) >= 0.7 * len(chosen)
    missed = [kill for kill in chosen if kill not in killed.landed]
    too_late = {kill[1] for kill in missed if kill[-1] == "trainer"}
    assert {kill[1] for kill in missed} <= too_late


@pytest.mark.long(keep=99)
def test_the_last_run_finds_every_stage_done_and_the_same_hashes(killed: Killed, trained: Trained) -> None:
    assert all(stage["reused"] for stage in killed.last["stages"])
    assert killed.hashes() == trained.hashes()
    assert all(verify_artifact(killed.root / stage.out) == [] for stage in STAGES.values())


@pytest.mark.long(keep=99)
def test_one_version_was_registered_and_no_run_is_open(killed: Killed, trained: Trained) -> None:
    params, _ = load_params(killed.root)
    store = Store(killed.root, params.registry)
    (version,) = all_versions(store, params.registry.model_name)
    assert version.uri == killed.last["model_uri"] == trained.first.payload["model_uri"]
    assert killed.run("audit", version.uri, "--json").code == 0
    (experiment,) = store.client.search_experiments(filter_string=f"name = '{params.registry.experiment}'")
    left = store.client.search_runs([experiment.experiment_id], "attributes.status = 'RUNNING'")
    assert [run.info.run_name for run in left] == []


@pytest.mark.long(keep=99)
def test_nothing_is_left_half_written_and_no_lock_is_held(killed: Killed) -> None:
    left = [path for path in killed.root.rglob("*") if ".draft-" in path.name or ".retired-" in path.name]
    assert left == []
    assert list((killed.root / ".plumbline/work").rglob("checkpoint-*")) == []
    table = json.loads((killed.root / ".dvc/tmp/rwlock").read_bytes())
    assert not any(table.values())
    assert "up to date" in killed.shell("dvc", "repro").out
    assert killed.run("retrain", "--json").redone == []


@pytest.mark.long(keep=99)
def test_a_finding_whose_run_was_killed_behind_its_registration_has_its_answer(
    killed: Killed, victims: Victims
) -> None:
    """A new verdict makes a new version, which names the finding; the next poll starts nothing for it."""
    killed.set_params("gate.min_prompts=17")
    params, _ = load_params(killed.root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_API_URL", killed.server)
        request_retraining(killed.root, params, key="finding/1", why="win rate fell", evidence={})
    assert victims.run(killed.root, ("before_the_end_of_the_claim",), poll=True) == -9
    assert victims.run(killed.root, poll=True) == 0
    assert "NotStarted: nothing new waits" in victims.log.read_text()
    assert [run.outcome for run in runs(open_outbox(killed.root, params))] == ["killed"]
    store = Store(killed.root, params.registry)
    assert [version.number for version in all_versions(store, params.registry.model_name)] == ["1", "2"]
