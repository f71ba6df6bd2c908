"""The per-template report: what a frame shared by many texts looks like, and what de-duplication made of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from plumbline.tasks.data.curation.near_duplicates import NearDuplicates
from plumbline.tasks.data.curation.shingles import I64, windows_of
from plumbline.tasks.params.curation import MatchingParams

_BLANK = "…"
_SHOWN_WORDS = 60


def template_table(near: NearDuplicates, params: MatchingParams) -> list[dict[str, Any]]:
    """A row for each neighbourhood of `template_texts` texts or more, largest first.

    `template` is the frame, with a blank for what differs; `candidate_pairs` were compared, `verified_pairs` were
    near duplicates, and `groups` are left once those are joined.
    """
    sizes = np.bincount(near.neighbourhoods, minlength=1)
    large = [int(label) for label in np.flatnonzero(sizes >= params.template_texts)]
    if not large:
        return []
    candidates = _count_within(near, near.candidates, len(sizes))
    verified = _count_within(near, near.pairs, len(sizes))
    rows = []
    for label in large:
        members = np.flatnonzero(near.neighbourhoods == label)
        rows.append(
            {
                "template": _frame(near, members, params.shingle_words),
                "texts": int(sizes[label]),
                "candidate_pairs": int(candidates[label]),
                "verified_pairs": int(verified[label]),
                "groups": len(np.unique(near.groups[members])),
            }
        )
    return sorted(rows, key=lambda row: (-row["texts"], row["template"]))


def _count_within(near: NearDuplicates, pairs: np.ndarray[Any, Any], labels: int) -> np.ndarray[Any, Any]:
    left, right = near.neighbourhoods[pairs[:, 0]], near.neighbourhoods[pairs[:, 1]]
    return np.bincount(left[left == right], minlength=labels)


def _frame(near: NearDuplicates, members: I64, width: int) -> str:
    """The words of the first of some texts that a shingle of their frame covers; runs of others as one blank."""
    shingles = near.sketches.shingles(members)
    columns, counts = np.unique(shingles.columns, return_counts=True)
    first = np.intersect1d(columns[counts > len(members) / 2], shingles.columns[: shingles.offsets[1]])
    frame = set(shingles.hashes[first].tolist())
    words, windows = windows_of(near.texts[int(members[0])], width)
    # Padded by width - 1 on the left, word i lies in the windows i .. i + width - 1.
    covered = [any(int(window) in frame for window in windows[i : i + width]) for i in range(len(words))]
    shown: list[str] = []
    for word, kept in zip(words[:_SHOWN_WORDS], covered, strict=False):
        if kept or not shown or shown[-1] != _BLANK:
            shown.append(word if kept else _BLANK)
    return " ".join(shown)
