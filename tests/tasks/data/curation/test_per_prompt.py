"""At most so many pairs of one prompt, the best supported ones."""

from __future__ import annotations

import pytest

from plumbline.tasks.data.curation.curate import curate
from plumbline.tasks.params.curation import CurationParams, SplitParams

PROMPT = "When does the parcel with the blue kettle arrive at my house in the village by the lake?"
NEAR = PROMPT.replace("by the lake", "near the lake")
ANSWERS = ("On Monday, if the road is free.", "Nobody knows such things.", "Ask the post office.", "Kettles are heavy.")


def _curate(pairs, most):
    params = CurationParams(max_pairs_per_prompt=most, split=SplitParams(on_empty="warn"))
    curated = curate(pairs, params, 0)
    kept = [pair.id for split in (curated.train, curated.validation, curated.test) for pair in split]
    return sorted(kept), curated


@pytest.fixture
def batch(make_pair):
    """Two people prefer answer 0, one the others; p5 asks something else, p4 nearly the same."""
    return [
        make_pair(1, PROMPT, ANSWERS[1], "Never.", annotator="ann", timestamp="2026-01-01T00:00:00Z"),
        make_pair(2, PROMPT, ANSWERS[0], "Never.", annotator="ann"),
        make_pair(3, PROMPT, ANSWERS[0], "Never.", annotator="bob"),
        make_pair(4, NEAR, ANSWERS[2], "Never.", annotator="ann", timestamp="2026-02-01T00:00:00Z"),
        make_pair(5, "Who repairs the old radio of my aunt?", ANSWERS[3], "Never.", annotator="ann"),
    ]


@pytest.mark.parametrize(
    ("most", "kept"),
    [
        (None, ["p1", "p2", "p4", "p5"]),  # p3 is p2 again
        (3, ["p1", "p2", "p4", "p5"]),
        (2, ["p2", "p4", "p5"]),  # two votes, then the latest of those with one
        (1, ["p2", "p5"]),
    ],
)
def test_the_pairs_with_most_votes_stay_then_the_latest(batch, most, kept):
    assert _curate(batch, most)[0] == kept


def test_the_others_are_merged_named_and_counted(batch):
    _, curated = _curate(batch, 1)
    rows = {row.record_id: row for row in curated.merged if row.reason == "over_prompt_limit"}
    assert {name: row.into for name, row in rows.items()} == {"p1": "p2", "p4": "p2"}
    assert rows["p4"].why == "curation.max_pairs_per_prompt is 1; 1 votes, 2 for the pair that stays"
    assert curated.report["reasons"] == {"exact_duplicate": 1, "over_prompt_limit": 2}
    assert curated.report["read"] == curated.report["accepted"] + curated.report["merged"] == 5


def test_curating_what_was_curated_changes_nothing(batch):
    kept, curated = _curate(batch, 2)
    again = [pair for split in (curated.train, curated.validation, curated.test) for pair in split]
    assert _curate(sorted(again, key=lambda pair: pair.id), 2)[0] == kept
