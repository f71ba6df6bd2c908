"""Words and numbers for a yes and a no, as labels and thumbs of single responses have them."""

from __future__ import annotations

from collections.abc import Mapping

from plumbline.tasks.data.feedback.columns import Row, number_of

_WORDS: Mapping[str, bool] = {
    **dict.fromkeys(("true", "up", "thumbs_up", "positive", "good", "like", "liked", "yes", "desirable", "👍"), True),
    **dict.fromkeys(("false", "down", "thumbs_down", "negative", "bad", "dislike", "disliked", "no"), False),
    **dict.fromkeys(("undesirable", "👎"), False),
}
_NUMBERS: Mapping[bool, Mapping[float, bool]] = {False: {1: True, 0: False}, True: {1: True, -1: False}}  # of a thumb
_NEUTRAL = (0, "0", "none", "neutral", "")


def known_opinion(row: Row) -> str | None:
    """The opinion that a row carries as a label or thumb, up or down; None if it is neither."""
    for column in ("label", "thumb", "kto_tag"):
        found = read_opinion(row.get(column), column)
        if found is not None:
            return "up" if found else "down"
    return None


def read_opinion(value: object, column: str) -> bool | None:
    """The opinion of a label or thumb; None if it is neither."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in _WORDS:
        return _WORDS[value.strip().lower()]
    number = number_of(value)  # a column of whole numbers with gaps comes as floats, and CSV as texts
    return None if number is None else _NUMBERS[column == "thumb"].get(number)


def is_neutral(value: object) -> bool:
    """True for a thumb that says that there is no opinion."""
    return (value.strip().lower() if isinstance(value, str) else value) in _NEUTRAL
