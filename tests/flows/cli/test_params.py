"""`plumbline params`, `init --recipe`, `init --sample-world`: what a person reads and writes, and what a run takes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

from plumbline.flows.graph.stages import STAGES
from plumbline.flows.graph.workspaces import recipes, template_files
from plumbline.tasks.params.layers import load_params
from plumbline.tasks.params.whole import Params
from tests.flows.conftest import Trained, Workspace


@pytest.fixture
def place(tmp_path: Path) -> Workspace:
    """A workspace as `plumbline init` makes it."""
    workspace = Workspace(tmp_path / "own", "http://127.0.0.1:9/api")
    workspace.root.mkdir()
    assert workspace.run("init", ".").code == 0
    return workspace


def rows_of(workspace: Workspace, *arguments: object) -> dict[str, dict[str, object]]:
    done = workspace.run("params", *arguments, "--json")
    assert done.code == 0, done.err
    return {row["key"]: row for row in done.payload["params"]}


def test_a_fresh_file_is_short_and_chooses_nothing_but_the_seed(place: Workspace) -> None:
    assert len((place.root / "params.yaml").read_text().splitlines()) <= 40
    assert load_params(place.root)[0] == Params()
    assert list(rows_of(place)) == ["seed"]


def test_init_says_what_comes_next_in_three_lines(tmp_path: Path) -> None:
    outside = Workspace(tmp_path, "http://127.0.0.1:9/api")
    lines = outside.run("init", "own").out.splitlines()
    (next_,) = [place for place, line in enumerate(lines) if line.startswith("Next:")]
    assert len(lines[next_:]) <= 3
    assert "--base MODEL" in lines[next_]
    assert outside.run("init", "world", "--sample-world").out.splitlines()[-1] == "Next: cd world && plumbline retrain"


def test_the_sample_world_is_there_only_where_it_was_asked_for(place: Workspace, tmp_path: Path) -> None:
    assert not load_params(place.root)[0].sample_world.enabled
    refused = place.run("retrain", "--dry-run")
    assert (refused.code, "reference.base" in refused.err, "--sample-world" in refused.err) == (2, True, True)
    assert place.run("init", str(tmp_path / "world"), "--sample-world").code == 0
    assert load_params(tmp_path / "world")[0].sample_world.enabled


def test_a_recipe_is_one_of_those_there_are(tmp_path: Path) -> None:
    outside = Workspace(tmp_path, "http://127.0.0.1:9/api")
    for name in recipes():
        assert outside.run("init", name, "--recipe", name).code == 0
        assert load_params(tmp_path / name)[0].recipe == name
    refused = outside.run("init", "own", "--recipe", "none-such")
    assert (refused.code, "expected one of" in refused.err, (tmp_path / "own").exists()) == (2, True, False)
    both = outside.run("init", "own", "--recipe", "real_pairs", "--sample-world")
    assert (both.code, "found both" in both.err) == (2, True)


def test_recipes_are_short_and_explained() -> None:
    for name, data in template_files().items():
        if name.startswith("params/"):
            lines = data.decode().splitlines()
            assert lines[0].startswith("# "), name
            assert len(lines) <= 80, name


def test_a_key_is_explained(place: Workspace) -> None:
    (row,) = rows_of(place, "finetune.dpo.beta").values()
    assert (row["value"], row["default"], row["place"], row["allowed"]) == (
        Params().finetune.dpo.beta,
        Params().finetune.dpo.beta,
        "default",
        "above 0 and at most 10",
    )
    shown = place.run("params", "finetune.dpo.beta").out
    assert all(word in shown for word in ("default", "above 0 and at most 10", "Strength of the tie"))
    assert set(rows_of(place, "split")) == {
        f"curation.split.{name}" for name in ("by", "seed", "train", "validation", "test", "on_empty")
    }


def test_an_unknown_key_names_the_nearest(place: Workspace) -> None:
    done = place.run("params", "finetune.dpo.betta")
    assert (done.code, "Did you mean finetune.dpo.beta" in done.err) == (2, True)


def test_values_name_the_file_and_line_they_come_from(place: Workspace) -> None:
    (place.root / "params/mine.yaml").write_text("threads: 2\n")
    assert place.run("params", "set", "recipe=mine", "finetune.dpo.beta=0.3").code == 0
    line = (place.root / "params.yaml").read_text().splitlines().index("    beta: 0.3") + 1
    rows = rows_of(place)
    assert rows["finetune.dpo.beta"]["place"] == f"params.yaml:{line}"
    assert rows["threads"]["place"] == "params/mine.yaml:1"
    assert set(rows_of(place, "--diff")) == {"recipe", "threads", "finetune.dpo.beta"}
    tried = rows_of(place, "finetune.dpo.beta", "--set", "finetune.dpo.beta=0.4")
    assert tried["finetune.dpo.beta"]["value"] == 0.4
    assert load_params(place.root)[0].finetune.dpo.beta == 0.3


def test_set_and_unset(place: Workspace) -> None:
    before = (place.root / "params.yaml").read_text()
    done = place.run("params", "set", "threads=2", "finetune.methods=[sft, dpo]")
    assert done.out.splitlines() == ["threads: not set -> 2", "finetune.methods: not set -> ['sft', 'dpo']"]
    assert (place.root / "params.yaml").read_text().startswith(before)
    refused = place.run("params", "set", "threads=3", "seed=-1")
    assert (refused.code, load_params(place.root)[0].threads) == (2, 2)
    assert place.run("params", "unset", "threads", "finetune.methods").code == 0
    assert (place.root / "params.yaml").read_text() == before
    assert place.run("params", "set", "reference.base=some/model", "reference.revision=main").code == 0
    before = (place.root / "params.yaml").read_text()
    left = place.run("params", "unset", "reference.base")
    assert (left.code, "reference.revision" in left.err) == (2, True)
    assert (place.root / "params.yaml").read_text() == before
    again = place.run("params", "unset", "threads")
    assert (again.code, "found none there" in again.err) == (2, True)


def test_the_whole_is_a_file_of_params(place: Workspace) -> None:
    whole = place.run("params", "--all").out
    assert YAML(typ="safe").load(whole) == Params().model_dump(mode="json")
    assert "# Strength of the tie to" in whole


def test_the_schema_takes_what_the_params_take_and_refuses_what_they_refuse(place: Workspace) -> None:
    schema = Draft202012Validator(json.loads((place.root / "params.schema.json").read_text()))
    fresh = YAML(typ="safe").load((place.root / "params.yaml").read_text())
    assert (place.root / "params.yaml").read_text().startswith("# yaml-language-server: $schema=params.schema.json\n")
    for document in (fresh, Params().model_dump(mode="json"), {"finetune": None}, {"finetune": {"dpo": {"beta": 0.2}}}):
        assert schema.is_valid(document)
    for document in ({"sead": 1}, {"finetune": {"dpo": {"beta": -1}}}, {"finetune": {"methods": ["ppa"]}}):
        assert not schema.is_valid(document)


# --- a run and DVC ---------------------------------------------------------------------------------------------------


def test_once_holds_for_one_run(trained: Trained, copy: Workspace) -> None:
    """The gate is decided under the threshold of that run, then under the one that stays; nothing else runs."""
    choices = (copy.root / "params.yaml").read_bytes()
    assert copy.run("retrain", "--once", "gate.min_prompts=17", "--json").redone == ["gate"]
    assert (copy.root / "params.yaml").read_bytes() == choices
    assert YAML(typ="safe").load((copy.root / "params.resolved.yaml").read_text())["gate"]["min_prompts"] == 17
    assert "modified:           params.resolved.yaml" in copy.shell("dvc", "status").out
    after = copy.run("retrain", "--json")
    assert after.code == 0, after.err
    assert copy.hashes() == trained.hashes()
    assert copy.shell("dvc", "status").out.strip() == "Data and pipelines are up to date."


def test_an_edit_of_the_file_reaches_dvc_by_itself(copy: Workspace) -> None:
    """`dvc repro` makes the resolved set first, and then runs what the changed value concerns."""
    with (copy.root / "params.yaml").open("a") as file:
        file.write("threads: 1\n")
    assert copy.run("params", "set", "gate.min_prompts=17").code == 0
    done = copy.shell("dvc", "repro")
    assert done.code == 0, done.err
    assert [line for line in done.out.splitlines() if line.startswith("Running")] == [
        "Running stage 'params':",
        "Running stage 'gate':",
    ]
    assert copy.run("retrain", "--json").redone == []


@pytest.mark.slow
def test_a_value_that_names_an_input_asks_dvc_to_begin_again(fresh: Callable[[str], Workspace]) -> None:
    """DVC read `dvc.yaml` before the first stage, so the graph it goes by is of before."""
    workspace = fresh("inputs")
    assert workspace.run("params", "set", "reference.sft.data=curated").code == 0
    done = workspace.shell("dvc", "repro", "params")
    assert done.code != 0
    assert "run `dvc repro` again" in done.err
    assert workspace.shell("dvc", "repro", "params").code == 0
    assert "data/curated" in _inputs_of(workspace, "reference")


def _inputs_of(workspace: Workspace, stage: str) -> list[str]:
    """Paths that DVC would have a stage depend on now."""
    load = "Repo('.').stage.load_one('dvc.yaml', sys.argv[1])"
    code = f"import sys; from dvc.repo import Repo; [print(dep) for dep in {load}.deps]"
    return workspace.shell("python", "-c", code, stage).out.split()


def test_params_are_resolved_by_hand_as_by_dvc(place: Workspace) -> None:
    assert place.run("params", "set", "threads=2").code == 0
    assert place.run("stage", "params").code == 0
    values = YAML(typ="safe").load((place.root / "params.resolved.yaml").read_text())
    keys = {key for stage in STAGES.values() for key in stage.params}
    assert values["threads"] == 2
    assert {key.split(".")[0] for key in keys} <= set(values)
    listed = subprocess.run(["git", "ls-files"], cwd=place.root, check=True, capture_output=True, text=True).stdout
    assert {"params.yaml", "params.resolved.yaml", "params.schema.json"} <= set(listed.split())
