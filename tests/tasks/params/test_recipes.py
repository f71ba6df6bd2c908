"""Recipes: what they choose. Whole chains run in tests/flows/test_recipes.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from plumbline.data_contracts.errors import ParamsError
from plumbline.flows.graph.workspaces import recipes
from plumbline.tasks.params.document import dumped, without
from plumbline.tasks.params.layers import load_params
from plumbline.tasks.params.renamed import renamed
from plumbline.tasks.params.section import PARAMS_FILE, flatten
from plumbline.tasks.params.validation import validate_params

REPOSITORY = Path(__file__).resolve().parents[3]


def recipe(name: str) -> Any:
    return YAML().load((REPOSITORY / "params" / f"{name}.yaml").read_text())


def of_recipe(root: Path, name: str, without_key: str | None = None) -> dict[str, Any]:
    """Every value of a workspace that chooses nothing but a recipe, which may lack a key."""
    document = recipe(name)
    if without_key is not None:
        assert without(document, without_key)
    (root / PARAMS_FILE).write_text(f"recipe: {name}\n")
    (root / "params").mkdir(exist_ok=True)
    (root / "params" / f"{name}.yaml").write_text(dumped(document))
    try:
        return dict(flatten(load_params(root)[0].model_dump(mode="json")))
    except ParamsError:  # the rest needs it
        return {}


def test_the_sample_world_is_what_the_defaults_were_when_they_were_its_own(tmp_path: Path) -> None:
    """Measurements of the sample world, and workspaces that had it, keep their meaning.

    A served answer has at most 48 tokens by default, as in the evaluation, which were 256. The split is by size there.
    """
    before = YAML(typ="safe").load((REPOSITORY / "flows/graph/workspace/defaults-0.1.yaml").read_text())
    old = dict(flatten(validate_params(renamed(before)[0], tmp_path).model_dump(mode="json")))
    new = of_recipe(tmp_path, "sample_world")
    differing = {key for key in {**old, **new} if old.get(key) != new.get(key)}
    assert {key for key in differing if not key.startswith("training.")} == {
        "recipe",
        "curation.split.by",
        "serving.limits.default_tokens",
    }
    assert new["curation.split.by"] == "size"


@pytest.mark.parametrize("name", recipes())
def test_a_recipe_holds_nothing_that_is_a_default(tmp_path: Path, name: str) -> None:
    whole = of_recipe(tmp_path, name)
    idle = [key for key in dict(flatten(recipe(name))) if of_recipe(tmp_path, name, without_key=key) == whole]
    assert idle == []
