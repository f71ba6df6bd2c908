"""`plumbline reproduce`: a version made again and compared."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
