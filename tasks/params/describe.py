"""Params as people read them: each with value, default, place, range and description; the whole as a commented file."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from plumbline.tasks.params.document import WIDTH, dumped
from plumbline.tasks.params.layers import Layers
from plumbline.tasks.params.section import section_of
from plumbline.tasks.params.validation import PlaceOf
from plumbline.tasks.params.whole import Params

DEFAULT = "default"
"""The place of a value that nobody set."""

_SIGNS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below", "multiple_of": "a multiple of"}


@dataclass(frozen=True, slots=True)
class Param:
    """One param. `place` is the file and line, option or `DEFAULT` that its value comes from."""

    key: str
    value: Any
    default: Any
    place: str
    allowed: str
    description: str

    @property
    def chosen(self) -> bool:
        """Tell if the value is another than the default."""
        return bool(self.value != self.default)


def described(layers: Layers, params: Params) -> list[Param]:
    """Every param of a workspace, in the order of the sections."""
    values, defaults = params.model_dump(mode="json"), Params().model_dump(mode="json")
    return list(_described(layers.place_of, Params, values, defaults, ()))


def all_params() -> list[Param]:
    """Every param with its default."""
    defaults = Params().model_dump(mode="json")
    return list(_described(lambda _: None, Params, defaults, defaults, ()))


def _described(
    place_of: PlaceOf,
    section: type[BaseModel],
    values: Mapping[str, Any],
    defaults: Mapping[str, Any] | None,
    path: tuple[str, ...],
) -> Iterator[Param]:
    for name, value in values.items():
        key, default = (*path, name), (defaults or {}).get(name)
        inside, _ = section_of(section, name)
        if isinstance(value, Mapping) and inside is not None:
            yield from _described(place_of, inside, value, default, key)
        else:
            field = section.model_fields.get(name)
            yield Param(
                ".".join(key),
                value,
                default,
                place_of(key) or DEFAULT,
                allowed_of(section, name),
                (field.description if field else None) or "",
            )


def allowed_of(section: type[BaseModel], name: str) -> str:
    """The values that a param may have, in words; empty if its type says it all."""
    field = section.model_fields.get(name)
    if field is None:
        return ""
    choices = [choice for kind in (field.annotation, *get_args(field.annotation)) for choice in _choices(kind)]
    bounds = [
        f"{word} {getattr(constraint, sign)}"
        for constraint in field.metadata
        for sign, word in _SIGNS.items()
        if getattr(constraint, sign, None) is not None
    ]
    null = ["null"] if section_of(section, name)[1] else []
    said = [", ".join(choices)] if choices else [" and ".join(bounds)] if bounds else []
    return " or ".join([*said, *null])


def _choices(kind: Any) -> list[str]:
    if get_origin(kind) is Literal:
        return [str(choice) for choice in get_args(kind)]
    return ["true", "false"] if kind is bool else []


def render_params(params: Params) -> str:
    """Every param with its value and its description, as a file of params."""
    return dumped(_documented(params))


def _documented(section: BaseModel, depth: int = 0, *, in_list: bool = False) -> CommentedMap:
    """The section as a mapping with a comment above each key; in a list the first key's stands above the dash."""
    document = CommentedMap()
    plain, indent = section.model_dump(mode="json"), 2 * depth
    for place, name in enumerate(plain):
        value = getattr(section, name)
        document[name] = plain[name]
        if isinstance(value, BaseModel):
            document[name] = _documented(value, depth + 1)
        elif isinstance(value, tuple) and any(isinstance(item, BaseModel) for item in value):
            document[name] = _documented_list(value, depth + 1)
        if not (in_list and place == 0):
            before = _comment(section, name, indent)
            document.yaml_set_comment_before_after_key(
                name, before=f"\n{before}" if depth == 0 else before, indent=indent
            )
    return document


def _documented_list(sections: Sequence[BaseModel], depth: int) -> CommentedSeq:
    document = CommentedSeq()
    for place, section in enumerate(sections):
        document.append(_documented(section, depth, in_list=True))
        first = next(iter(type(section).model_fields))
        before = _comment(section, first, 2 * depth - 2)
        document.yaml_set_comment_before_after_key(place, before=before, indent=2 * depth - 2)
    return document


def _comment(section: BaseModel, name: str, indent: int) -> str:
    field = type(section).model_fields.get(name)
    return textwrap.fill((field.description if field else None) or "", WIDTH - indent - 2)
