"""`trainer_args`: any argument of a TRL config by its own name, refused at once where there is none such."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from data_contracts.errors import ParamsError


def check_trainer_args(
    known: type | Iterable[str], given: Mapping[str, Any], where: str, owned: Mapping[str, str] | None = None
) -> None:
    """Raise `ParamsError` for arguments that a TRL config does not know, or that Plumbline sets itself.

    `known` is the config class or the names of its fields; `where` is the key in params, such as
    `reward.trainer_args`; `owned` maps an argument to what to do instead of setting it.
    """
    names = [field.name for field in fields(known)] if _is_config(known) else sorted(known)  # type: ignore[arg-type]
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise ParamsError(f"{where}: " + "; ".join(f"no argument {name!r}{_nearest(name, names)}" for name in unknown))
    taken = sorted(set(given) & set(owned or {}))
    if taken and owned is not None:
        raise ParamsError(f"{where}: " + "; ".join(f"{name!r} cannot be set here: {owned[name]}" for name in taken))


def _is_config(known: type | Iterable[str]) -> bool:
    return isinstance(known, type) and is_dataclass(known)


def _nearest(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f", did you mean {close[0]!r}?" if close else " (see the documentation of TRL's config class)"
