"""`plumbline promote`, `rollback`, `history`: which version serves, and who said so."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
