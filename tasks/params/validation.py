"""Validate a document of params, and say of each mistake where it stands, what was expected and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from plumbline.data_contracts.errors import ParamsError
from plumbline.data_contracts.secrets import mask
from plumbline.tasks.params.renamed import moved
from plumbline.tasks.params.trainer_section import TRAINER_ARGUMENT
from plumbline.tasks.params.whole import Params

_SHOWN = 10  # mistakes; a file from before a change of names has one for each of its keys

PlaceOf = Callable[[Sequence[str]], str | None]
"""The file and line of a key, or the option that brought it; None if nobody set it."""


def validate_params(document: Mapping[str, Any], source: Path, place_of: PlaceOf | None = None) -> Params:
    """Validate a document against every section. Raises `ParamsError` with one line per mistake.

    `place_of` names the place of a key; without it the line in `source` does, as far as the document knows it.
    """
    try:
        return Params.model_validate(document)
    except ValidationError as error:
        mistakes = error.errors()
        lines = [_explain(detail, document, source, place_of) for detail in mistakes[:_SHOWN]]
        more = [f"and {len(mistakes) - _SHOWN} more."] if len(mistakes) > _SHOWN else []
        raise ParamsError("\n".join([*lines, *more])) from None


def _explain(detail: ErrorDetails, document: Mapping[str, Any], source: Path, place_of: PlaceOf | None) -> str:
    """One line: file, line, key, what was expected, what was found, what to do."""
    path = [str(part) for part in detail["loc"]]
    key = ".".join(path)
    place = (place_of(path) if place_of and path else None) or f"{source}{_line_of(document, path)}"
    where = f"{place}: {key or 'params'}"
    if detail["type"] in ("extra_forbidden", TRAINER_ARGUMENT) and (told := moved(key)):
        return f"{where}: {told}"
    if detail["type"] == TRAINER_ARGUMENT:
        return f"{where}: {detail['msg']}"
    if detail["type"] == "extra_forbidden":
        known = list(_fields_at(path[:-1]))
        near = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean {'.'.join([*path[:-1], near[0]])!r}?" if near else f"known keys: {', '.join(known)}."
        return f"{where}: unknown key; {hint}"
    found = "" if isinstance(detail["input"], Mapping) else f"; found {mask(repr(detail['input']))}"
    return f"{where}: {detail['msg'].removesuffix('.')}{found}.".replace("Value error, ", "")


def _fields_at(path: Iterable[str]) -> Iterable[str]:
    section: Any = Params()
    for part in path:
        section = getattr(section, part, None)
    return type(section).model_fields if isinstance(section, BaseModel) else ()


def _line_of(document: Any, path: Sequence[str]) -> str:
    """`:LINE` of a key in the file, or nothing where a setting on the command line brought it."""
    for part in path[:-1]:
        document = document.get(part) if isinstance(document, Mapping) else None
    try:
        return f":{document.lc.key(path[-1])[0] + 1}"
    except (AttributeError, KeyError, TypeError, IndexError):
        return ""
