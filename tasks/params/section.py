"""The base of every params section (typed, documented, frozen, closed to unknown keys), and params by dotted key."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from plumbline.data_contracts.errors import ParamsError

PARAMS_FILE = "params.yaml"
"""The file of a workspace's params."""


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
