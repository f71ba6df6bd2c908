"""Params of `promotion`."""

from __future__ import annotations

from data_contracts.params import Section


class PromotionParams(Section):
    """What a version must show to be promoted."""
