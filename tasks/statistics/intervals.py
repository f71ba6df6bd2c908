"""Confidence intervals of a proportion (Wilson) and of a paired mean (bootstrap)."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

_CELLS = 1 << 22  # indices drawn at once: bounds memory at 32 MiB whatever n and resamples are


def wilson_interval(successes: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval (low, high) of a proportion (Wilson 1927; no continuity correction).

    `successes` may hold halves, one for each tie, and `n` be an effective size (`effective_size`). No trials say
    nothing: n = 0 gives (0, 1).
    Raises ValueError unless 0 ≤ successes ≤ n and 0 < confidence < 1.
    """
    _check_confidence(confidence)
    if not 0 <= successes <= n:
        raise ValueError(f"expected 0 ≤ successes ≤ n, found successes={successes}, n={n}")
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate = successes / n
    centre = rate + z * z / (2 * n)
    spread = z * ((rate * (1 - rate) + z * z / (4 * n)) / n) ** 0.5
    scale = 1 + z * z / n
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def paired_bootstrap(
    values: Sequence[float] | NDArray[np.floating], confidence: float, resamples: int, seed: int
) -> tuple[float, float, float]:
    """Mean of one value per pair, with its percentile-bootstrap interval: (mean, low, high).

    values: (n,), what one unit (a prompt) says of both policies at once, such as a win of 0, ½ or 1;
    units are resampled whole, so that the pairing is kept (Efron & Tibshirani 1993, ch. 13).
    Naive equivalent: `scipy.stats.bootstrap((values,), numpy.mean, method="percentile")`.
    One value has no spread: n = 1 gives NaN for both ends. Raises ValueError on no values or a NaN.
    """
    sample = np.asarray(values, dtype=np.float64)  # (n,)
    _check_confidence(confidence)
    if sample.ndim != 1 or sample.size == 0 or not np.isfinite(sample).all() or resamples < 1:
        raise ValueError(
            f"expected one or more finite values and resamples ≥ 1, found shape {sample.shape}, "
            f"{int((~np.isfinite(sample)).sum())} not finite, resamples={resamples}"
        )
    mean = float(sample.mean())
    if sample.size == 1:
        return mean, float("nan"), float("nan")
    means = _resampled_means(sample, resamples, np.random.default_rng(seed))  # (resamples,)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return mean, float(low), float(high)


def _resampled_means(
    sample: NDArray[np.float64], resamples: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    means = np.empty(resamples)
    step = max(1, _CELLS // sample.size)
    for start in range(0, resamples, step):
        stop = min(start + step, resamples)
        rows = generator.integers(sample.size, size=(stop - start, sample.size))  # (chunk, n)
        means[start:stop] = sample[rows].mean(axis=1)
    return means


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"expected a confidence between 0 and 1, found {confidence}")
