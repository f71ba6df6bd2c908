"""Params of `intake`."""

from __future__ import annotations

from data_contracts.params import Section


class IntakeParams(Section):
    """How feedback comes in by itself."""
