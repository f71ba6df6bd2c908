"""Params of `finetune.ppo`."""

from __future__ import annotations

from pydantic import Field

from data_contracts.params import Section


class PpoParams(Section):
    """Proximal policy optimisation (Schulman et al. 2017), our own trainer."""

    beta: float = Field(0.04, ge=0, le=10, description="Weight of the KL divergence from π_ref.")
