"""The base of sections that configure a trainer: its further arguments stand beside the section's own fields.

A key is a field of the section, or an argument of the trainer's config class by that class's own name. Any other is
refused, with the nearest valid name; so are arguments that Plumbline sets itself, with the reason.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import ConfigDict, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from plumbline.tasks.params.config_arguments import arguments_of, misfit
from plumbline.tasks.params.section import Section, plain

OWNED = "set by Plumbline, because resuming, determinism, the frozen reference or the secrecy of tokens depend on it"
"""The reason why most of the refused arguments are refused."""

TRAINER_ARGUMENT = "trainer_argument"
"""Type of the validation error of an argument that a section does not take."""


class TrainerSection(Section):
    """A section that takes the arguments of a trainer's config class besides its own fields."""

    model_config = ConfigDict(extra="allow")

    config_class: ClassVar[str] = "TrainingArguments"
    """Config class that further arguments belong to (`config_arguments`)."""

    elsewhere: ClassVar[Mapping[str, str]] = {}
    """Arguments that follow from a key of another name."""

    refused: ClassVar[Mapping[str, str]] = {}
    """Arguments that cannot be set, and why."""

    @property
    def further_arguments(self) -> dict[str, Any]:
        """Arguments of the config class that are no fields of the section, by name."""
        return dict(self.model_extra or {})

    @model_validator(mode="before")
    @classmethod
    def _arguments_are_known(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        further = [name for name in given if name not in cls.model_fields]
        found = {name: problem for name in further if (problem := cls._problem_of(name, given[name]))}
        if found:
            raise ValidationError.from_exception_data(
                cls.__name__, [_error(name, given[name], problem) for name, problem in found.items()]
            )
        return {**given, **{name: plain(given[name]) for name in further}}

    @classmethod
    def _problem_of(cls, name: str, value: Any) -> str | None:
        """Return why an argument cannot stand beside the section's fields; None if it can."""
        if name in cls.elsewhere:
            return f"follows from another key. Set `{cls.elsewhere[name]}` instead."
        if name in cls.refused:
            return f"{cls.refused[name]}. Remove it."
        arguments = arguments_of(cls.config_class)
        if name not in arguments:
            return f"unknown key; {cls._nearest(name, [*cls.model_fields, *arguments])}"
        return misfit(arguments[name], value)

    @classmethod
    def _nearest(cls, name: str, names: list[str]) -> str:
        allowed = [each for each in names if each not in cls.elsewhere and each not in cls.refused]
        if close := difflib.get_close_matches(name, allowed, n=1):
            return f"did you mean {close[0]!r}?"
        return f"known keys: {', '.join(cls.model_fields)}, and any argument of {cls.config_class}."


def _error(name: str, value: Any, problem: str) -> InitErrorDetails:
    error = PydanticCustomError(TRAINER_ARGUMENT, "{problem}", {"problem": problem})
    return InitErrorDetails(type=error, loc=(name,), input=value)
