"""`plumbline up`, `down`, `status`: what a laptop needs, supervised on loopback."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
