"""One guard for every private name of a library that we call or override: gone or renamed, it fails at import.

A method that overrides a private name which is no longer called would stop working without a word.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

from plumbline.data_contracts.errors import OperationsError


@contextmanager
def private_names(library: str) -> Iterator[None]:
    """Around imports from private modules: what is not there becomes an `OperationsError` that says what to install."""
    try:
        yield
    except ImportError as error:
        raise _other_version(library, str(error)) from error


def require_names(library: str, owner: type | ModuleType, *names: str) -> None:
    """Raise `OperationsError` unless a class or module of the library still has these private names."""
    missing = [name for name in names if not hasattr(owner, name)]
    if missing:
        raise _other_version(library, f"{owner.__name__} has no {', '.join(missing)}")


def _other_version(library: str, found: str) -> OperationsError:
    try:
        installed = version(library)
    except PackageNotFoundError:
        installed = "that is not installed"
    return OperationsError(
        f"{library} {installed}: expected the private names that Plumbline was tested with, found: {found}. Install "
        f"the version of requirements.lock."
    )
