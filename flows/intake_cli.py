"""`plumbline inbox`, `intake`, `outbox`: fresh feedback on its way to a run."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
