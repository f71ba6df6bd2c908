"""A trained version made again from raw data: equal here, and the first stage that differs where one does."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import orjson
import pytest

from plumbline.data_contracts.errors import UsageError
from plumbline.flows.graph.stages import STAGES
from plumbline.tasks.params.layers import load_params
from plumbline.tasks.registry.reproduce_version import open_reproduction, render_reproduction, reproduce_version
from tests.flows.conftest import Trained


@pytest.fixture(scope="module")
def reproduced(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """`plumbline reproduce assistant --to DIR --json`, and its folder."""
    folder = tmp_path_factory.mktemp("reproduced") / "again"
    done = trained.run("reproduce", "assistant", "--to", folder, "--json")
    assert done.code == 0, done.err
    return folder, done.payload


@pytest.mark.long(keep=99)
def test_every_stage_is_equal_on_one_machine(reproduced: tuple[Path, dict[str, Any]]) -> None:
    _, report = reproduced
    assert (report["equal"], report["first"], report["model_uri"]) == (True, None, "models:/assistant/1")
    assert [stage["stage"] for stage in report["stages"]] == list(STAGES)
    assert all(stage["equal"] and stage["files"] > 0 for stage in report["stages"])
    # the sources may be edited while a suite runs; packages, Python and platform may not
    assert [line for line in report["environment"] if not line.startswith("program ")] == []


@pytest.mark.long(keep=99)
def test_every_stage_really_ran(reproduced: tuple[Path, dict[str, Any]]) -> None:
    """Each left a log, and none a link to the run-cache."""
    folder, _ = reproduced
    logs = {path.stem for path in (folder / "workspace/.plumbline/logs").glob("*.log")}
    assert logs == set(STAGES)


@pytest.mark.long
def test_the_first_stage_that_differs_is_named_with_how_much(
    trained: Trained, reproduced: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """Resumed after a kill that lost the policy, with another learning rate behind the version's back."""
    folder = tmp_path / "perturbed"
    shutil.copytree(reproduced[0], folder, symlinks=True)
    shutil.rmtree(folder / "workspace/models/policy")
    registry = load_params(trained.root)[0].registry
    again = open_reproduction(trained.root, "assistant", registry, folder)
    before = (folder / "workspace/.plumbline/logs/reward.log").stat().st_mtime_ns

    report = reproduce_version(
        again, list(STAGES.values()), lambda root: load_params(root, (), ["finetune.dpo.learning_rate=0.01"])[0]
    )

    assert (report.equal, report.first) == (False, "finetune")
    outcomes = {outcome["stage"]: outcome for outcome in report.stages}
    assert next(name for name, outcome in outcomes.items() if not outcome["equal"]) == "finetune"
    assert outcomes["finetune"]["follows"] == []
    assert outcomes["evaluate"]["follows"] == ["finetune"]
    weights = next(item for item in outcomes["finetune"]["differences"] if item["file"] == "model.safetensors")
    assert weights["max_abs"] > 0 and weights["relative_norm"] > 0
    assert (folder / "workspace/.plumbline/logs/reward.log").stat().st_mtime_ns == before, "equal stages are kept"
    assert report.folder == str(folder)
    render_reproduction(report)


@pytest.mark.long(keep=99)
def test_a_folder_with_other_content_is_refused(
    trained: Trained, reproduced: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    registry = load_params(trained.root)[0].registry
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="found other content"):
        open_reproduction(trained.root, "assistant", registry, tmp_path)
    state = tmp_path / "other" / "reproduction.json"
    state.parent.mkdir()
    state.write_bytes(orjson.dumps({"model_uri": "models:/assistant/7", "manifest_sha256": "x", "done": {}}))
    with pytest.raises(UsageError, match="a reproduction of models:/assistant/7 was begun there"):
        open_reproduction(trained.root, "assistant", registry, state.parent)
