"""Sources of feedback: files in any known format become records of one contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

from plumbline.tasks.data.feedback import human_pairs, unpaired_responses
from plumbline.tasks.data.feedback.rows import ReadRow
from plumbline.tasks.data.feedback.usual_pairs import UsualRow

SOURCES: dict[str, Callable[..., Iterator[ReadRow]]] = {
    "human_pairs": human_pairs.read,
    # the same formats and contract, but a judge chose: `annotator` names it
    "judged_pairs": partial(human_pairs.read, source="judged_pairs"),
    unpaired_responses.SOURCE: unpaired_responses.read,
}
"""Kind of feedback -> how its files are read: `read(rows, origin, limits, rules)` yields every row, in order."""

QUICK: Mapping[str, Callable[..., Iterator[ReadRow | UsualRow]]] = SOURCES | {
    "human_pairs": human_pairs.read_quickly,
    "judged_pairs": partial(human_pairs.read_quickly, source="judged_pairs"),
}
"""The same, with the fields alone of rows in a usual shape: for whole files."""

UNPAIRED = frozenset({unpaired_responses.SOURCE})
"""Kinds whose records are `UnpairedResponse`; those of the others are `PreferencePair`."""
