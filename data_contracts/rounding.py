"""Figures in messages, beside the thresholds they are compared with."""

from __future__ import annotations

import math

_MOST_DIGITS = 17  # a float64 has no more


def rounded(value: float, threshold: float, spec: str) -> str:
    """The value in a format such as `.3f`, `.4g` or `.1%`, with more digits if it would else read as the threshold.

    A value below a threshold never reads as equal to it or above it, and the other way round.
    """
    if not (math.isfinite(value) and math.isfinite(threshold)):
        return format(value, spec)
    sign, digits, kind = _parts(spec)
    for count in range(digits, _MOST_DIGITS + 1):
        text = format(value, f"{sign}.{count}{kind}")
        if _side(_read(text), threshold) == _side(value, threshold):
            return text
    return repr(value)


def _parts(spec: str) -> tuple[str, int, str]:
    sign, _, rest = spec.partition(".")
    return sign, int(rest[:-1]), rest[-1]


def _read(text: str) -> float:
    return float(text[:-1]) / 100 if text.endswith("%") else float(text)


def _side(value: float, threshold: float) -> int:
    return (value > threshold) - (value < threshold)
