"""Surface of a response: figures that say nothing of what it means. Those of two responses are subtracted.

A model that predicts the label from such figures alone shows what else than quality a label follows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from plumbline.tasks.data.clinic.estimate import F64

_BULLET = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s", re.MULTILINE)


def _log_count(pattern: str) -> Callable[[str], float]:
    found = re.compile(pattern, re.MULTILINE)
    return lambda text: float(np.log1p(sum(1 for _ in found.finditer(text))))


FIGURES: Mapping[str, Callable[[str], float]] = {
    "characters": lambda text: float(np.log1p(len(text))),
    "words": lambda text: float(np.log1p(len(text.split()))),
    "sentences": _log_count(r"[.!?](?:\s|$)"),
    "lines": lambda text: float(np.log1p(text.count("\n"))),
    "list items": lambda text: float(np.log1p(len(_BULLET.findall(text)))),
    "headings": _log_count(r"^#{1,6}\s"),
    "bold or italic": _log_count(r"\*\*|__|(?<!\*)\*\w"),
    "code": _log_count(r"`"),
    "links": _log_count(r"https?://|www\."),
    "digits": _log_count(r"\d"),
    "question marks": _log_count(r"\?"),
    "exclamation marks": _log_count(r"!"),
    "commas": _log_count(r","),
    "quotation marks": _log_count(r"[\"“”]"),
    "share of capitals": lambda text: sum(each.isupper() for each in text) / max(len(text), 1),
    "first word capital": lambda text: float(text.lstrip()[:1].isupper()),
    "mean word length": lambda text: float(np.mean([len(word) for word in text.split()] or [0])),
}
"""Name -> figure of one text; counts as log(1 + count)."""

NAMES = (*FIGURES, "shown first")
"""The columns of `differences`."""


def differences(left: Sequence[str], right: Sequence[str], first: Sequence[int]) -> F64:
    """Figures of the left responses less those of the right ones, and 1 if left was shown first: (n, F).

    `first` is 0 if the left was shown first, 1 if the right was, -1 if that is unknown; the column holds 1, -1 and 0.
    """
    columns = [[figure(a) - figure(b) for a, b in zip(left, right, strict=True)] for figure in FIGURES.values()]
    place = [{0: 1.0, 1: -1.0}.get(int(each), 0.0) for each in first]
    return np.array([*columns, place], dtype=np.float64).T.reshape(len(left), len(NAMES))
