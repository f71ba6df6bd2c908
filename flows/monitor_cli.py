"""`plumbline monitor`, `live`: what the served model does, and how sure that is."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
