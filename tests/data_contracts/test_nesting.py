"""Levels of JSON counted in its bytes, against a count over what was parsed."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plumbline.data_contracts.nesting import deeper_than, levels

TRICKY = st.sampled_from(['"', "\\", "[", "]{", ",", '\\"', '",["', "\u2028", ""])
VALUES = st.recursive(
    st.none() | st.integers(-5, 5) | TRICKY,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TRICKY, inner, max_size=4),
    max_leaves=25,
)


def depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max((depth(each) for each in inner), default=0)


@given(VALUES)
def test_levels_are_those_of_what_was_parsed(value: Any) -> None:
    text, deep = orjson.dumps(value), depth(value)
    assert levels(text) == deep
    assert not deeper_than(text, deep)
    assert deep == 0 or deeper_than(text, deep - 1)


@pytest.mark.parametrize(("text", "deep"), [(b"", 0), (b"7", 0), (b'"[[["', 0), (b'{"[', 1), (b"[[1], [[2]]]", 3)])
def test_levels_by_hand(text: bytes, deep: int) -> None:
    """Brackets in a text are none, also in one that does not end; lists side by side do not add up."""
    assert levels(text) == deep
