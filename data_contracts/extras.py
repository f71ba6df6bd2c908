"""One guard for libraries that a single feature needs, and that are installed only where it is wanted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from plumbline.data_contracts.errors import UsageError


@contextmanager
def needs_extra(extra: str, feature: str) -> Iterator[None]:
    """Around the imports of a feature: a library that is missing becomes a `UsageError` that says what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{feature}: expected the library {error.name}, found it not installed. Install it with "
            f"`pip install 'plumbline[{extra}]'`."
        ) from error
