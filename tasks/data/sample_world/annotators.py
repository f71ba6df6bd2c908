"""Annotators that see the gold reward through noise of their own (Bradley-Terry 1952)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from random import Random

# Temperature tau in gold units: P(first preferred) = sigmoid((gold_first - gold_second) / tau).
# From an expert to one who hardly reads.
TEMPERATURES: Mapping[str, float] = {
    "ann-01": 0.20,
    "ann-02": 0.25,
    "ann-03": 0.30,
    "ann-04": 0.40,
    "ann-05": 0.50,
    "ann-06": 0.70,
    "ann-07": 1.00,
    "ann-08": 3.00,
}


def prefers_first(first: float, second: float, temperature: float) -> float:
    """Probability that an annotator of this temperature prefers the response of gold reward `first`."""
    return 0.5 * (1.0 + math.tanh((first - second) / (2.0 * temperature)))


def judge(first: float, second: float, annotator: str, noise: float, rng: Random) -> bool:
    """Draw one label: whether this annotator prefers the first response."""
    return rng.random() < prefers_first(first, second, TEMPERATURES[annotator] * noise)
