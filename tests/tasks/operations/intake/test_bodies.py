"""Bodies within bounds: depth, number of values, gzip; held to naive counts over what was parsed."""

from __future__ import annotations

import gzip
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plumbline.tasks.operations.intake.bodies import (
    JSON,
    NDJSON,
    BodyRefusal,
    BodyRow,
    Shape,
    check_types,
    parse_rows,
    unzip,
)
from tests.data_contracts.test_nesting import TRICKY, VALUES, depth

WIDE = Shape(max_rows=1000, max_values=10**6, max_depth=200)


def count(value: Any) -> int:
    """Values in lists and objects, an empty one counted as one inside it as well."""
    inner = list(value.values() if isinstance(value, dict) else value) if isinstance(value, dict | list) else None
    return 0 if inner is None else max(1, len(inner)) + sum(count(each) for each in inner)


def refusal(data: bytes, media: str = NDJSON, **bounds: int) -> tuple[int, str] | None:
    shape = Shape(**{"max_rows": 1000, "max_values": 10**6, "max_depth": 200, **bounds})
    try:
        parse_rows(data, media, shape)
    except BodyRefusal as refused:
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


@pytest.mark.parametrize(
    ("text", "kind"),
    [(b"[]", "a list"), (b'"t"', "a string"), (b"true", "true or false"), (b"null", "null"), (b"7.5", "a number")],
)
def test_what_is_no_object_is_called_by_its_kind(text: bytes, kind: str) -> None:
    with pytest.raises(BodyRefusal, match=rf"expected a JSON object, found {kind}\.") as refused:
        parse_rows(b"{}\n" + text, NDJSON, WIDE)
    assert (refused.value.status, refused.value.code, refused.value.line) == (400, "not_an_object", 2)
    with pytest.raises(BodyRefusal, match="found a list") as refused:
        parse_rows(b"[{}, []]", JSON, WIDE)
    assert (refused.value.code, refused.value.line, refused.value.field) == ("not_an_object", None, "[1]")


def test_a_body_without_a_row_is_refused_and_one_too_many_as_well() -> None:
    assert refusal(b" \n\n") == refusal(b"[]", JSON) == (400, "empty")
    assert refusal(b"{}\n\n{}", max_rows=2) is None
    assert refusal(b"{}\n\n{}", max_rows=1) == (413, "too_many_rows")
    assert refusal(b"{}", JSON) == (400, "not_a_list")


@pytest.mark.parametrize(
    ("content_type", "encoding", "told"),
    [
        ("Application/JSON; charset=utf-8", None, (JSON, False)),
        (NDJSON, " GZIP ", (NDJSON, True)),
        (NDJSON, "identity", (NDJSON, False)),
        ("text/csv", None, "unsupported_type"),
        (None, None, "unsupported_type"),
        (JSON, "br", "unsupported_encoding"),
    ],
)
def test_types_that_are_understood(content_type: str | None, encoding: str | None, told: object) -> None:
    if isinstance(told, tuple):
        assert check_types(content_type, encoding) == told
        return
    with pytest.raises(BodyRefusal) as refused:
        check_types(content_type, encoding)
    assert (refused.value.status, refused.value.code) == (415, told)


def test_too_deep_is_told_by_line_and_broken_lines_do_not_add_up() -> None:
    deep = b'{"a":' * 5 + b"1" + b"}" * 5
    with pytest.raises(BodyRefusal) as refused:
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
    assert parse_rows(line, NDJSON, WIDE) == [BodyRow(1, line)]


@pytest.mark.parametrize("lying", [False, True])
def test_gzip_that_grows_beyond_what_text_does_is_refused(lying: bool) -> None:
    """100,000 blanks are 133 bytes of gzip, more than 50 times as large; the size at its end may be a lie."""
    bomb = gzip.compress(b" " * 100_000)
    bomb = bomb[:-4] + bytes(4) if lying else bomb
    with pytest.raises(BodyRefusal) as refused:
        unzip(bomb, 10**9)
    assert refused.value.status == 413
    text = bytes(range(256)) * 40
    assert unzip(gzip.compress(text), len(text)) == text
    with pytest.raises(BodyRefusal):
        unzip(gzip.compress(text), len(text) - 1)


def test_gzip_that_is_broken_says_how() -> None:
    """64 members are read, one after another; a body of more, a cut one and one that is no gzip are refused."""
    text = b'{"a": 1}\n'
    for data, told in (
        (gzip.compress(text)[:-9], "ends before its end"),
        (b"", "ends before its end"),
        (gzip.compress(text) + b"more", "is not gzip"),
        (gzip.compress(text) * 65, "more than 64 members"),
    ):
        with pytest.raises(BodyRefusal, match=told) as refused:
            unzip(data, 10**6)
        assert (refused.value.status, refused.value.code) == (400, "bad_gzip")
    assert unzip(gzip.compress(text) * 64, 10**6) == text * 64


@pytest.mark.parametrize(("data", "media", "line"), [(b'[{},\n{},\n{"a"]', JSON, 3), (b'{}\n\n{"a"', NDJSON, 3)])
def test_broken_json_names_its_line(data: bytes, media: str, line: int) -> None:
    with pytest.raises(BodyRefusal, match="not JSON, column") as refused:
        parse_rows(data, media, WIDE)
    assert (refused.value.code, refused.value.line) == ("broken_json", line)
