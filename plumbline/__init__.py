"""Plumbline: raw human feedback in, an aligned language model out that can be audited.

From Python, `open_workspace` and `init_workspace` give a `Workspace`, whose methods do what the commands of the same
names do. `Workspace.load_champion` gives a `ChatModel`. Failures are `PlumblineError`s. `docs/python.md` has examples.

Nothing is imported before a name is used: `import plumbline` costs no time and changes nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plumbline.data_contracts.errors import CheckFailed, ParamsError, PlumblineError, UsageError
    from plumbline.workspace import ChatModel, Workspace, init_workspace, open_workspace

__all__ = [
    "ChatModel",
    "CheckFailed",
    "ParamsError",
    "PlumblineError",
    "UsageError",
    "Workspace",
    "init_workspace",
    "open_workspace",
]
_ERRORS = ("CheckFailed", "ParamsError", "PlumblineError", "UsageError")


def __getattr__(name: str) -> Any:
    """Import a name of `__all__` when it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("plumbline.data_contracts.errors" if name in _ERRORS else "plumbline.workspace"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
