"""The JSON Schema of `params.yaml`: an editor completes keys, shows their descriptions and marks what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
from pydantic import BaseModel

from plumbline.tasks.params.config_arguments import arguments_of, json_types_of
from plumbline.tasks.params.section import section_of
from plumbline.tasks.params.trainer_section import TrainerSection
from plumbline.tasks.params.whole import Params


def render_schema() -> bytes:
    """The schema as the text of a file. A section may be empty: then it chooses nothing."""
    schema = Params.model_json_schema()
    definitions: dict[str, Any] = schema["$defs"]
    for section in [schema, *definitions.values()]:
        for field in section.get("properties", {}).values():
            _let_be_empty(field)
    for kind in set(_trainer_sections(Params)):
        _take_arguments(definitions[kind.__name__], kind)
    return orjson.dumps(schema, option=orjson.OPT_APPEND_NEWLINE)


def _let_be_empty(field: dict[str, Any]) -> None:
    if "$ref" in field:
        field.pop("default", None)
        field["anyOf"] = [{"$ref": field.pop("$ref")}, {"type": "null"}]


def _take_arguments(definition: dict[str, Any], kind: type[TrainerSection]) -> None:
    """Let a section hold the further arguments of its trainer's config class, and no other key."""
    for name, annotation in arguments_of(kind.config_class).items():
        if name not in kind.elsewhere and name not in kind.refused and name not in definition["properties"]:
            types = json_types_of(annotation)
            described = {"description": f"{kind.config_class}.{name}"}
            definition["properties"][name] = described | ({"type": types} if types else {})
    definition["additionalProperties"] = False


def _trainer_sections(section: type[BaseModel]) -> Iterator[type[TrainerSection]]:
    for name in section.model_fields:
        inside, _ = section_of(section, name)
        if inside is not None:
            if issubclass(inside, TrainerSection):
                yield inside
            yield from _trainer_sections(inside)
