"""Params of `monitor`."""

from __future__ import annotations

from data_contracts.params import Section


class MonitorParams(Section):
    """What the monitor flow watches."""
