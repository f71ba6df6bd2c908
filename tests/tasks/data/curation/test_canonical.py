from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plumbline.tasks.data.curation.canonical import canonical
from plumbline.tasks.data.curation.exact import merge_exact
from plumbline.tasks.data.curation.verdicts import Item
from plumbline.tasks.params.curation import MatchingParams


@pytest.mark.parametrize(
    ("text", "fold_case", "fold_space", "expected"),
    [
        (" A\u00a0 B\n", True, True, "a b"),
        (" A\u00a0 B\n", False, True, "A B"),
        (" A B\n", True, False, " a b\n"),
        ("\ufb01ne \uff21", True, True, "fine a"),
        ("Stra\u00dfe", True, True, "strasse"),
    ],
)
def test_canonical(text, fold_case, fold_space, expected):
    assert canonical(text, MatchingParams(fold_case=fold_case, fold_space=fold_space)) == expected


@given(st.text())
def test_canonical_is_idempotent(text):
    once = canonical(text, MatchingParams())
    assert canonical(once, MatchingParams()) == once


def test_exact_duplicates_fold_into_the_first(make_pair):
    """Keys x y x x: the third and fourth go into the first, which then has three votes, of three annotators."""
    items = [Item.of(make_pair(line, annotator=f"a{line}"), line) for line in range(1, 5)]
    outcome = merge_exact(items, ["x", "y", "x", "x"])
    assert [item.pair.id for item in outcome.kept] == ["p1", "p2"]
    assert [(one.record_id, one.into, one.reason) for one in outcome.merged] == [
        ("p3", "p1", "exact_duplicate"),
        ("p4", "p1", "exact_duplicate"),
    ]
    assert [item.votes for item in outcome.kept] == [3, 1]
