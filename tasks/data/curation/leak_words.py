"""Words without which no label leaks: most texts hold none of them, and are passed without a search for patterns.

Naive equivalent: search every text for every pattern of `leakage`.
"""

from __future__ import annotations

_WORDS = (
    *(
        "prefer",
        "chosen",
        "reject",
        "better",
        "wors",
        "best",
        "marked",
        "superior",
        "inferior",
        "winn",
        "lose",
        "losing",
    ),
    *("label", "verdict", "annotator", "rater", "crowd", "choose", "chose", "pick", "rated", "ranked"),
)
_MARKS = (">", "≻")
_SAME = (("\u017f", "s"), ("\u0131", "i"), ("i\u0307", "i"))  # letters that `re.IGNORECASE` takes for s and i


def could_leak(text: str) -> bool:
    """False if a text holds no word that every leak holds one of."""
    lowered = _lowered(text)
    return any(word in lowered for word in _WORDS) or any(mark in text for mark in _MARKS)


def plain_words(text: str) -> str:
    """The text in lower case, words apart by one space: where a pattern allows white space, it has a space."""
    return " ".join(_lowered(text).split())


def _lowered(text: str) -> str:
    lowered = text.lower()
    if not text.isascii():
        for letter, plain in _SAME:
            lowered = lowered.replace(letter, plain)
    return lowered
