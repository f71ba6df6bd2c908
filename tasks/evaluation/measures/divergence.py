"""KL(π‖π_ref), in nats, with intervals: per token and per sequence, by each estimator of `tasks.models.divergence`.

With top_p < 1 `kl` is the mean divergence at the states that the nucleus sampler visits, k1 and k3 are biased, and
metrics say so (`samples_from_policy`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from plumbline.tasks.evaluation.measures.estimate import Estimate, mean
from plumbline.tasks.models.divergence import Floats, SequenceDivergences
from plumbline.tasks.params.evaluation import EvaluationParams


def divergence(sequences: SequenceDivergences, params: EvaluationParams, seed: int) -> dict[str, Any]:
    """Estimates per token (total divergence over total tokens) and per sequence, with bootstrap intervals."""
    found: dict[str, Any] = {"samples_from_policy": params.top_p == 1.0, "temperature": params.temperature}
    for name, sums in (("kl", sequences.kl), ("k1", sequences.k1), ("k3", sequences.k3)):
        found[f"{name}_nats_per_token"] = _ratio(sums, sequences.tokens, params, seed)
        found[f"{name}_nats_per_sequence"] = mean(sums, params, seed)
    return found


def _ratio(sums: Floats, tokens: NDArray[np.int64], params: EvaluationParams, seed: int) -> Estimate:
    """Ratio of means with completions as the sampling unit; linearised, so that it bootstraps as a mean.

    With r = Σs/Σt, the values r + (s - r·t)/mean(t) average to r and vary as the ratio does
    (Cochran 1977, ch. 6).
    """
    if tokens.size == 0:
        return mean(sums, params, seed)
    ratio = sums.sum() / tokens.sum()
    return mean(ratio + (sums - ratio * tokens) / tokens.mean(), params, seed)
