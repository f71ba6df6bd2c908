"""Params of the sample world, for tests that train tiny models: the defaults are those of real ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ruamel.yaml import YAML

from plumbline.tasks.params.layers import layers_with
from plumbline.tasks.params.section import Section
from plumbline.tasks.params.whole import Params

REPOSITORY = Path(__file__).resolve().parents[2]
WORLD: Params = layers_with(REPOSITORY, YAML().load("recipe: sample_world")).validate()

Kind = TypeVar("Kind", bound=Section)


def in_world(kind: type[Kind], **settings: Any) -> Kind:
    """A section with the sample world's values, and settings over them; a part of a section inside leaves its rest."""
    values = next(found for found in _sections(WORLD) if type(found) is kind).model_dump()
    for name, value in settings.items():
        below = values.get(name)
        values[name] = {**below, **value} if isinstance(value, Mapping) and isinstance(below, Mapping) else value
    return kind.model_validate(values)


def _sections(section: Section) -> Iterator[Section]:
    yield section
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from _sections(value)
