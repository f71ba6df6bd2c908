"""Bodies within bounds: depth, number of values, gzip; held to naive counts over what was parsed."""

from __future__ import annotations

import gzip
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.intake.bodies import JSON, NDJSON, Refusal, Row, Shape, parse_rows, unzip

WIDE = Shape(max_rows=1000, max_values=10**6, max_depth=200)
TRICKY = st.sampled_from(['"', "\\", "[", "]{", ",", '\\"', '",["', "\u2028", ""])
VALUES = st.recursive(
    st.none() | st.integers(-5, 5) | TRICKY,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TRICKY, inner, max_size=4),
    max_leaves=25,
)


def depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max((depth(each) for each in inner), default=0)


def count(value: Any) -> int:
    """Values in lists and objects, an empty one counted as one inside it as well."""
    inner = list(value.values() if isinstance(value, dict) else value) if isinstance(value, dict | list) else None
    return 0 if inner is None else max(1, len(inner)) + sum(count(each) for each in inner)


def refusal(data: bytes, media: str = NDJSON, **bounds: int) -> tuple[int, str] | None:
    shape = Shape(**{"max_rows": 1000, "max_values": 10**6, "max_depth": 200, **bounds})
    try:
        parse_rows(data, media, shape)
    except Refusal as refused:
        return refused.status, refused.code
    return None


@given(st.dictionaries(TRICKY, VALUES, max_size=3))
def test_bounds_are_exact(row: dict[str, Any]) -> None:
    """The bound itself passes, one less does not, whatever the texts and names hold."""
    line = orjson.dumps(row)
    assert refusal(line, max_depth=depth(row)) is None
    assert refusal(line, max_depth=depth(row) - 1) == (400, "too_deep")
    assert refusal(line, max_values=count(row)) is None
    assert refusal(line, max_values=count(row) - 1) == (413, "too_many_values")


def test_a_list_is_one_level_more_than_its_rows() -> None:
    row = {"a": {"b": []}}
    assert refusal(orjson.dumps([row]), JSON, max_depth=3) is None
    assert refusal(orjson.dumps([row]), JSON, max_depth=2) == (400, "too_deep")


def test_too_deep_is_told_by_line_and_broken_lines_do_not_add_up() -> None:
    deep = b'{"a":' * 5 + b"1" + b"}" * 5
    with pytest.raises(Refusal) as refused:
        parse_rows(b"{}\n" + deep, NDJSON, Shape(10, 100, 4))
    assert (refused.value.code, refused.value.line) == ("too_deep", 2)
    assert refusal(b'{"a":\n' * 9, max_depth=4) == (400, "broken_json")


@pytest.mark.parametrize("broken", [b'{"a":"' + b'\\"' * 10**6, b'"' * 10**6, b"\\" * 10**6, b'{"' + b"[," * 10**6])
def test_no_text_makes_the_look_take_long(broken: bytes) -> None:
    """Each would take hours where a string that does not end is looked for anew at each quote."""
    found = refusal(broken, max_values=100, max_depth=4)
    assert found is not None and found[0] in (400, 413)


def test_whatever_is_let_in_can_be_written_again() -> None:
    """orjson reads more levels than it writes: the bound lies below both."""
    line = b'{"a":' * 200 + b"1" + b"}" * 200
    assert parse_rows(line, NDJSON, WIDE) == [Row(1, line)]


@pytest.mark.parametrize("lying", [False, True])
def test_gzip_that_grows_beyond_what_text_does_is_refused(lying: bool) -> None:
    """100,000 blanks are 133 bytes of gzip, more than 50 times as large; the size at its end may be a lie."""
    bomb = gzip.compress(b" " * 100_000)
    bomb = bomb[:-4] + bytes(4) if lying else bomb
    with pytest.raises(Refusal) as refused:
        unzip(bomb, 10**9)
    assert refused.value.status == 413
    text = bytes(range(256)) * 40
    assert unzip(gzip.compress(text), len(text)) == text
    with pytest.raises(Refusal):
        unzip(gzip.compress(text), len(text) - 1)
