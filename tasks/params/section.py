"""The base of every params section (typed, documented, frozen, closed to unknown keys), and params by dotted key."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict

from plumbline.data_contracts.errors import ParamsError

PARAMS_FILE = "params.yaml"
"""The file of a workspace's choices."""

RECIPES = "params"
"""Folder of a workspace's recipes."""

SCHEMA_FILE = "params.schema.json"
"""The JSON Schema of params, by which an editor completes and checks `params.yaml`."""

RESOLVED_FILE = "params.resolved.yaml"
"""The file with the value of every param, which DVC reads; made from the choices."""


class Section(BaseModel):
    """One section of `params.yaml`. Every field has a description with its unit."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


def from_environment(given: str, key: str, kind: str) -> str:
    """The value as given, or, where it is `$NAME`, what that environment variable holds. Raises `ParamsError`.

    `key` names the value in params, `kind` what it is, with its article: both for the message.
    """
    if not given.startswith("$"):
        return given
    value = os.environ.get(given[1:])
    if not value:
        raise ParamsError(
            f"{key}: expected {kind} in the environment variable {given[1:]}, found it unset. Export it, or set {key} "
            f"to the value itself or to null."
        )
    return value


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested mappings by dotted key; an empty mapping is a leaf."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Values by dotted key as nested mappings: what `flatten` takes apart."""
    found: dict[str, Any] = {}
    for key, value in flat.items():
        *heads, last = key.split(".")
        section = found
        for head in heads:
            section = section.setdefault(head, {})
        section[last] = value
    return found


def value_at(values: Any, key: str) -> Any:
    """The value of a dotted key in nested mappings; None if it is not there."""
    for part in key.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def section_of(section: type[BaseModel] | None, name: str) -> tuple[type[BaseModel] | None, bool]:
    """The section that a field of a section holds, None if it is a plain value; and whether it may be null."""
    field = section.model_fields.get(name) if section is not None else None
    if field is None:
        return None, True
    kinds = [field.annotation, *get_args(field.annotation)]
    found = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return (found[0] if found else None), type(None) in kinds


def plain(value: Any) -> Any:
    """A YAML value without the formatting that its type remembers, which JSON does not take."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    kinds = (kind for kind in (bool, int, float, str) if isinstance(value, kind))
    return next((kind(value) for kind in kinds), value)
