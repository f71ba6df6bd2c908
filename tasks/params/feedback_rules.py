"""Rules by which rankings and ratings become what the loop learns from, and the names of a map of columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ListPairs = Literal["all", "adjacent", "best_vs_rest", "best_vs_random"]
"""The comparisons that a list of responses gives."""

MAP_COLUMNS = (
    *("prompt", "system", "history"),
    *("chosen", "rejected", "score_chosen", "score_rejected", "margin"),
    *("response_a", "response_b", "label", "votes"),
    *("response", "thumb", "rating", "messages"),
    *("responses", "ranking", "scores"),
    *("id", "annotator", "timestamp", "source"),
)
"""Columns that a map may name: of the prompt, of pairs, of two responses, of one, of lists, and about the row."""

MAP_VALUES = ("label.a", "label.b", "label.tie", "thumb.up", "thumb.down", "thumb.none")
"""Values that a map may name, each a value or several with commas between."""

MAP_METADATA = "metadata"
"""The name of a map for columns that are kept in the metadata."""

MAP_NAMES = (*MAP_COLUMNS, *MAP_VALUES, MAP_METADATA)
"""All names of a map."""


@dataclass(frozen=True, slots=True)
class Rules:
    """`list_pairs`: the pairs of a list. `scale`: lowest and highest rating, where a file does not say it."""

    list_pairs: ListPairs = "best_vs_rest"
    scale: tuple[float, float] = (1.0, 5.0)


RULES = Rules()
