from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from plumbline.flows.graph.environment import ENVIRONMENT
from plumbline.flows.graph.stages import STAGES, render_dvc_yaml
from plumbline.flows.graph.workspaces import template_files
from plumbline.tasks.params.whole import Params
from plumbline.tasks.pipeline.stage import Stage, fill

ROOT = Path(__file__).resolve().parents[3]


def test_the_repository_is_itself_a_fresh_workspace() -> None:
    """`params.yaml`, `dvc.yaml` and the overlays at the top level are what `plumbline init` writes."""
    for name, data in template_files().items():
        if name != ".gitignore":
            assert (ROOT / name).read_bytes() == data, f"{name} is stale; delete it and run `plumbline init .`"


def test_the_environment_file_is_the_environment() -> None:
    lines = (ROOT / "infra" / "plumbline.env").read_text().splitlines()
    assert dict(line.split("=", 1) for line in lines if not line.startswith("#")) == ENVIRONMENT


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_a_stage_body_takes_exactly_the_params_it_declares(stage: Stage) -> None:
    taken = [name for name in inspect.signature(stage.body).parameters if name != "context"]
    assert taken == [key.replace(".", "_") for key in stage.params]


def test_stages_stand_in_the_order_of_their_data() -> None:
    """Every dependency is the output of an earlier stage, or raw feedback."""
    made = {"data/raw"}
    for stage in STAGES.values():
        assert {fill(path, Params()) for path in stage.deps.values()} <= made
        made.add(stage.out)


def test_dvc_yaml_carries_the_same_graph() -> None:
    graph = YAML(typ="safe").load(render_dvc_yaml())["stages"]
    assert list(graph) == ["params", *STAGES]
    params = graph.pop("params")
    assert params["deps"] == ["params", "params.yaml"]
    assert list(params["outs"][0]) == ["params.resolved.yaml"]
    for name, entry in graph.items():
        assert entry["cmd"] == f"plumbline stage {name}"
        assert entry["outs"] == [STAGES[name].out]
        assert [dep.replace("${graph.", "${") for dep in entry.get("deps", [])] == sorted(STAGES[name].deps.values())
        assert entry["params"] == [{"params.resolved.yaml": list(STAGES[name].params)}]
