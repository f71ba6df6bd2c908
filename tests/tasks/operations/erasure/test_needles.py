"""The search for erased texts equals the naive one, and finds a text in every spelling that a file may have."""

from __future__ import annotations

import io
import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plumbline.tasks.operations.erasure import needles
from plumbline.tasks.operations.erasure.needles import Searcher, named, needles_of

TEXT = "Ärger „mit“ Blau\nund Grün"


@given(st.binary(max_size=60), st.sets(st.binary(min_size=12, max_size=16), max_size=4), st.data())
def test_it_finds_what_the_naive_search_finds(filling: bytes, looked: set[bytes], data: st.DataObject) -> None:
    """`needle in data` for each needle, some of which are put into the bytes at any place."""
    content = filling
    for needle in data.draw(st.lists(st.sampled_from(sorted(looked)), max_size=3)) if looked else []:
        at = data.draw(st.integers(0, len(content)))
        content = content[:at] + needle + content[at:]
    assert Searcher(looked).found_in(content) == {needle for needle in looked if needle in content}


@pytest.mark.parametrize(
    "spelling",
    [
        TEXT.encode(),
        orjson.dumps({"a": TEXT}),
        json.dumps({"a": TEXT}).encode(),
        b"first 90 characters: " + ("x" * 40 + TEXT * 9).encode()[:90],
    ],
)
def test_a_text_is_found_in_every_spelling_and_by_its_beginning(spelling: bytes) -> None:
    looked = needles_of([TEXT, "x" * 40 + TEXT * 9])
    assert Searcher(looked).found_in(spelling)
    assert not Searcher(looked).found_in(spelling.replace(b"r", b"").replace(b"x", b""))


def test_a_stream_is_searched_across_its_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text begins 5 bytes before the end of the first chunk of 64."""
    monkeypatch.setattr(needles, "_CHUNK", 64)
    searcher = Searcher(needles_of(["a text to find"]))
    assert searcher.occurs_in(io.BytesIO(b"." * 59 + b"a text to find" + b"." * 90))
    assert not searcher.occurs_in(io.BytesIO(b"." * 59 + b"a text to bind" + b"." * 90))


def test_a_short_text_is_no_needle_but_a_short_id_is_one_as_a_value() -> None:
    assert needles_of(["Yes, it is."]) == set()
    searcher = Searcher(named(("id", "into"), "r1"))
    assert searcher.found_in(b'{"id":"r1"}') and searcher.found_in(b'{"into": "r1"}')
    assert not searcher.found_in(b'{"id":"r12","name":"r1"}')


def test_what_other_rows_say_in_any_spelling_is_shared() -> None:
    shared = Searcher(needles_of([TEXT])).shared_with([json.dumps({"prompt": TEXT}).encode()])
    assert shared == needles_of([TEXT])
