"""`plumbline serve`, `harvest`: the champion behind an endpoint, a challenger in its shadow."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
