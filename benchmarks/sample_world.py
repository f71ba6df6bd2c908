"""The params of the sample world's recipe, which measurements on it use."""

from __future__ import annotations

from pathlib import Path

from ruamel.yaml import YAML

from plumbline.tasks.params.layers import layers_with
from plumbline.tasks.params.whole import Params

REPOSITORY = Path(__file__).resolve().parents[1]


def world_params() -> Params:
    """Every param of a workspace that chooses the recipe alone."""
    return layers_with(REPOSITORY, YAML().load("recipe: sample_world")).validate()
