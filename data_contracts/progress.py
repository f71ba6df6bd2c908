"""Progress of a long computation, reported without knowing who watches."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Called as `progress(done, total, note)`; `note` is a short phrase such as "loss 0.41"."""


def silent(done: int, total: int, note: str) -> None:
    """Watch nothing: the default if nobody looks."""
