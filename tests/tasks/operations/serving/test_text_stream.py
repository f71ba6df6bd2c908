"""What a stream shows is what decoding at once, cutting and trimming gives, and is never taken back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from plumbline.tasks.operations.serving.text_stream import TextStream


def show(data: bytes, stops: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    """A byte is a token, so that characters come in parts."""
    stream = TextStream(lambda ids: bytes(ids).decode(errors="replace"), stops)
    parts = []
    for token in data:
        parts.append(stream.push(token))
        if stream.stopped:
            break
    return [*parts, stream.finish()], stream.stopped


def naive(text: str, stops: tuple[str, ...]) -> str:
    """The first place at which any prefix of the text holds a stop string, trimmed."""
    for end in range(len(text) + 1):
        found = [text[:end].find(stop) for stop in stops if stop in text[:end]]
        if found:
            return text[: min(found)].strip()
    return text.strip()


@given(
    st.text(alphabet="ab \n€é", max_size=12), st.lists(st.text(alphabet="ab \n€", min_size=1, max_size=3), max_size=3)
)
def test_equals_the_naive_reading(text: str, stops: list[str]) -> None:
    parts, stopped = show(text.encode(), tuple(stops))
    assert "".join(parts) == naive(text, tuple(stops))
    assert stopped == any(stop in text for stop in stops)


def test_a_character_waits_for_its_bytes_and_a_stop_string_for_its_end() -> None:
    assert show("a€b".encode())[0] == ["a", "", "", "€", "b", ""]
    assert show(b"ab--c", ("---",))[0] == ["a", "b", "", "", "--c", ""]
    assert show(b"ab---c", ("---",))[0] == ["a", "b", "", "", "", ""]


def test_an_unfinished_character_at_the_end_is_shown_as_such() -> None:
    assert "".join(show(b"a\xe2\x82")[0]) == "a\N{REPLACEMENT CHARACTER}"
