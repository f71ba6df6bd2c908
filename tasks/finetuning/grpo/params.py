"""Params of `finetune.grpo`."""

from __future__ import annotations

from pydantic import Field

from data_contracts.params import Section


class GrpoParams(Section):
    """Group relative policy optimisation (Shao et al. 2024) with TRL."""

    beta: float = Field(0.04, ge=0, le=10, description="Weight of the KL divergence from π_ref.")
