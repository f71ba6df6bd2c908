"""Params of `trigger`."""

from __future__ import annotations

from data_contracts.params import Section


class TriggerParams(Section):
    """When a retraining run is due."""
