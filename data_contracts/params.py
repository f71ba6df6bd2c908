"""The base of every params section: typed, documented, frozen, and closed to unknown keys."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """One section of `params.yaml`. Every field has a description with its unit."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)
