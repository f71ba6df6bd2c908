"""Params of `services`."""

from __future__ import annotations

from data_contracts.params import Section


class ServicesParams(Section):
    """What `plumbline up` starts on loopback."""
