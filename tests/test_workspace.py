"""A workspace from Python, as far as nothing has to be trained."""

from __future__ import annotations

from pathlib import Path

import pytest

import plumbline
from tests.flows.conftest import write_hh_pairs


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> plumbline.Workspace:
    return plumbline.init_workspace(tmp_path_factory.mktemp("python") / "assistant")


def test_a_workspace_is_found_from_a_folder_inside_it(workspace: plumbline.Workspace) -> None:
    assert plumbline.open_workspace(workspace.root / "data") == workspace
    with pytest.raises(plumbline.UsageError, match="not inside a Plumbline workspace"):
        plumbline.open_workspace(workspace.root.parent)


def test_settings_are_values_or_lines(workspace: plumbline.Workspace) -> None:
    params = workspace.params(
        settings={"finetune.dpo.beta": 1e-5, "reference.base": None, "finetune.methods": ["sft", "dpo"], "seed": 3}
    )
    assert (params.finetune.dpo.beta, params.reference.base, params.seed) == (1e-5, None, 3)
    assert list(params.finetune.methods) == ["sft", "dpo"]
    assert workspace.params(settings=["seed=4"]).seed == 4
    assert workspace.params().seed == 17
    with pytest.raises(plumbline.ParamsError, match=r"finetune\.dpo\.beta"):
        workspace.params(settings={"finetune.dpo.beta": -1})


def test_failures_are_errors_of_the_project(workspace: plumbline.Workspace) -> None:
    with pytest.raises(plumbline.UsageError, match="unknown source of feedback"):
        workspace.validate("pairs.jsonl", "thumbs")
    with pytest.raises(plumbline.PlumblineError, match="no version of 'assistant'"):
        workspace.audit()
    with pytest.raises(plumbline.PlumblineError, match="nobody holds this alias"):
        workspace.load_champion()


def test_nothing_is_printed(workspace: plumbline.Workspace, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = write_hh_pairs(tmp_path / "pairs.jsonl", 24, seed=1)
    assert workspace.ingest(file).batches[0].new
    assert not workspace.ingest([file]).batches[0].new
    assert workspace.validate(str(file))["read"] == 24
    assert capfd.readouterr() == ("", "")
