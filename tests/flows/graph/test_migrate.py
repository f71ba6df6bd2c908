"""`plumbline migrate` on a workspace as 0.1 left it: one file with every param, a graph that reads it, their record."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import pytest
from ruamel.yaml import YAML

from plumbline.tasks.params.layers import load_params
from plumbline.tasks.params.renamed import RENAMED
from tests.flows.conftest import Trained, Workspace

OLD_VALUES = {
    "group_by_length": lambda value: value == "group_by_length",
    "steps_per_rollout": lambda value: value or 1,
}
"""Old key -> its old value, of today's."""


def older(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values under the names of 0.1, without sections and keys that came later."""
    old = YAML(typ="safe").load((files("plumbline.flows.graph") / "workspace/defaults-0.1.yaml").read_text())

    def value_of(path: list[str], default: Any) -> Any:
        if isinstance(default, dict) and default and path != ["compare", "variants"]:
            return {name: value_of([*path, name], inner) for name, inner in default.items()}
        section, new = ".".join(path[:-1]), path[-1]
        for place, table in RENAMED.items():
            relative = ".".join(path).removeprefix(f"{place}.")
            if relative in table and relative != ".".join(path):
                section, new = place, table[relative]
        found: Any = values
        for part in [*filter(None, section.split(".")), *new.split(".")]:
            found = found.get(part) if isinstance(found, Mapping) else None
        if path[-1] == "trainer_args":
            return {}
        if path[-1] == "sampler":
            return "vllm" if found else "own"
        return OLD_VALUES.get(path[-1], lambda value: value)(found)

    return {name: value_of([name], inner) for name, inner in old.items()}


@pytest.fixture
def of_0_1(copy: Workspace) -> Workspace:
    """The trained workspace under the files of 0.1."""
    yaml = YAML()
    resolved = YAML(typ="safe").load((copy.root / "params.resolved.yaml").read_text())
    values = older(resolved)
    with (copy.root / "params.yaml").open("w") as file:
        yaml.dump(values, file)
    graph = yaml.load((copy.root / "dvc.yaml").read_text().replace("${graph.", "${"))
    lock = yaml.load((copy.root / "dvc.lock").read_text())
    del graph["vars"], graph["stages"]["params"], lock["stages"]["params"]
    del graph["stages"]["lengths"], lock["stages"]["lengths"]
    for stage in graph["stages"].values():
        stage["deps"] = [path for path in stage.get("deps", ()) if path != "reports/lengths"]
    for stage in lock["stages"].values():
        stage["deps"] = [entry for entry in stage.get("deps", ()) if entry["path"] != "reports/lengths"]
    shutil.rmtree(copy.root / "reports/lengths")
    for name, stage in graph["stages"].items():
        stage["params"] = stage["params"][0]["params.resolved.yaml"]
        lock["stages"][name]["params"] = {"params.yaml": {key: at(values, key) for key in stage["params"]}}
    for name, document in (("dvc.yaml", graph), ("dvc.lock", lock)):
        with (copy.root / name).open("w") as file:
            yaml.dump(document, file)
    for name in ("params.resolved.yaml", "params.schema.json", "params/sample_world.yaml"):
        (copy.root / name).unlink()
    return copy


def at(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values[part]
    return values


def test_an_old_workspace_is_told_what_to_do(of_0_1: Workspace) -> None:
    done = of_0_1.run("retrain", "--dry-run")
    assert done.code == 2
    assert "finetune.dpo.learning_rate since 0.2; `plumbline migrate` rewrites params.yaml" in done.err or (
        "tiny_model.num_hidden_layers since 0.2; `plumbline migrate` rewrites params.yaml" in done.err
    )


def test_after_it_every_output_is_reused(of_0_1: Workspace, trained: Trained) -> None:
    """The choices stay under today's names, the rest is the recipe of the sample world, which meant the same."""
    before = {name: (of_0_1.root / name).stat().st_mtime_ns for name in ("data", "models", "reports/evaluation")}
    done = of_0_1.run("migrate")
    assert done.code == 0, done.err
    assert "finetune.dpo.eval_every -> eval_steps: 5" in done.out
    assert "recipe: sample_world, because the sample world was on" in done.out
    assert "the next run runs it" not in done.out
    assert "stage lengths: made; params set every length, so nothing was sampled" in done.out
    assert {name: (of_0_1.root / name).stat().st_mtime_ns for name in before} == before
    ours, theirs = load_params(of_0_1.root)[0], load_params(trained.root)[0]
    assert ours == theirs
    assert len((of_0_1.root / "params.yaml").read_text().splitlines()) < 100
    assert of_0_1.run("retrain", "--json").redone == []
    assert of_0_1.run("migrate").out.strip() == "Nothing to do: the workspace is of today."


def test_a_stage_whose_params_have_other_values_runs_again(of_0_1: Workspace) -> None:
    """The lock says that the gate ran under another threshold than the file: DVC would have run it, too."""
    lock = of_0_1.root / "dvc.lock"
    lock.write_text(lock.read_text().replace("min_prompts: 16", "min_prompts: 17"))
    assert "stage gate: its params have other values now; the next run runs it" in of_0_1.run("migrate").out
    plan = of_0_1.run("retrain", "--dry-run", "--json").payload
    assert [stage["stage"] for stage in plan["stages"] if stage["action"] != "reuse"] == ["gate"]


def test_own_feedback_takes_the_defaults_of_real_models(of_0_1: Workspace) -> None:
    """Where the sample world was off, what equalled a default of that time is a default of today."""
    file = of_0_1.root / "params.yaml"
    yaml = YAML()
    values = yaml.load(file.read_text())
    values["sample_world"]["enabled"], values["reference"]["base"] = False, "some/model"
    with file.open("w") as out:
        yaml.dump(values, out)
    done = of_0_1.run("migrate")
    assert done.code == 0, done.err
    params = load_params(of_0_1.root)[0]
    assert (params.recipe, params.sample_world.enabled, params.reference.base) == (None, False, "some/model")
    assert params.finetune.dpo.learning_rate == 1e-6
    assert params.finetune.dpo.eval_steps == 5


def test_a_migration_that_was_killed_is_completed(of_0_1: Workspace) -> None:
    """The file of choices was written, the graph not yet: what is no default of 0.1 is not chosen a second time."""
    graph = (of_0_1.root / "dvc.yaml").read_bytes()
    yaml = YAML()
    values = yaml.load((of_0_1.root / "params.yaml").read_text())
    values["sample_world"]["enabled"], values["reference"]["base"] = False, "some/model"
    with (of_0_1.root / "params.yaml").open("w") as out:
        yaml.dump(values, out)
    assert of_0_1.run("migrate").code == 0
    choices = (of_0_1.root / "params.yaml").read_bytes()
    (of_0_1.root / "dvc.yaml").write_bytes(graph)
    again = of_0_1.run("migrate")
    assert again.code == 0, again.err
    assert (of_0_1.root / "params.yaml").read_bytes() == choices
    assert "dvc.yaml: the graph of today" in again.out


def test_a_choice_that_does_not_hold_today_is_named_and_the_file_stays(of_0_1: Workspace) -> None:
    file = of_0_1.root / "params.yaml"
    file.write_text(file.read_text().replace("\nthreads: 1\n", "\nthreads: 0\n"))
    before = file.read_bytes()
    done = of_0_1.run("migrate")
    assert (done.code, "threads" in done.err, file.read_bytes() == before) == (2, True, True)
