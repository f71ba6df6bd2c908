"""An estimate with its interval, as metrics hold it: {"value", "low", "high", "n"}; null if nothing was observed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from plumbline.tasks.params.evaluation import EvaluationParams
from plumbline.tasks.statistics import clustered_interval, paired_bootstrap, wilson_interval

Estimate = dict[str, Any]


def proportion(outcomes: ArrayLike, params: EvaluationParams) -> Estimate:
    """Share of outcomes (n,) in {0, ½, 1}, with the Wilson interval."""
    values = np.asarray(outcomes, dtype=np.float64)
    if values.size == 0:
        return {"value": None, "low": None, "high": None, "n": 0}
    low, high = wilson_interval(float(values.sum()), values.size, params.confidence)
    return {"value": float(values.mean()), "low": low, "high": high, "n": int(values.size)}


def clustered_proportion(outcomes: ArrayLike, clusters: Sequence[str], params: EvaluationParams) -> Estimate:
    """`proportion` of outcomes (n,) in clusters (n,), counted too; the interval allows for likeness inside."""
    values = np.asarray(outcomes, dtype=np.float64)
    ends = dict(zip(("low", "high"), clustered_interval(values, clusters, params.confidence), strict=True))
    return proportion(values, params) | (ends if values.size else {}) | {"clusters": len(set(clusters))}


def mean(values: ArrayLike, params: EvaluationParams, seed: int) -> Estimate:
    """Mean of one value per prompt (n,), with the percentile-bootstrap interval over prompts; one prompt has none."""
    sample = np.asarray(values, dtype=np.float64)
    if sample.size == 0:
        return {"value": None, "low": None, "high": None, "n": 0}
    value, low, high = paired_bootstrap(sample, params.confidence, params.resamples, seed)
    ends = {"low": low, "high": high} if math.isfinite(low) else {"low": None, "high": None}
    return {"value": value, **ends, "n": int(sample.size)}
