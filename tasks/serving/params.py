"""Params of `serving`."""

from __future__ import annotations

from data_contracts.params import Section


class ServingParams(Section):
    """How the champion is served."""
