"""Anthropic HH text becomes messages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plumbline.data_contracts.records import Message
from plumbline.tasks.data.feedback.defects import Defect
from plumbline.tasks.data.feedback.hh_text import (
    is_hh_text,
    parse_prompt,
    parse_response,
    parse_turns,
    split_conversation,
)


def shown(turns: tuple[Message, ...]) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in turns]


@pytest.mark.parametrize(
    ("text", "is_hh"),
    [
        ("\n\nHuman: hi\n\nAssistant:", True),
        ("\n\nHuman: hi", True),
        ("Human: hi\n\nAssistant: yes", True),
        ("\r\n\r\nHuman: hi", True),
        ("Human: hi\nAssistant: yes", True),
        ("\nHuman: hi\r\nAssistant:", True),
        ("Human: a word with a colon", False),
        ("Humans are many", False),
        ("Tell me.\n\nHuman: x\n\nAssistant:", False),
        ("", False),
    ],
)
def test_recognition(text: str, is_hh: bool) -> None:
    assert is_hh_text(text) is is_hh


def test_turns_keep_inner_blank_lines_and_lose_outer_space() -> None:
    text = "\n\nHuman: one\n\ntwo \n\nAssistant:  three\nHuman: quoted\n\nHuman: four\n\nAssistant:"
    assert shown(parse_turns(text)) == [
        ("user", "one\n\ntwo"),
        ("assistant", "three\nHuman: quoted"),
        ("user", "four"),
        ("assistant", ""),
    ]


TURNS = [("user", "one\nline two"), ("assistant", "three"), ("user", "four"), ("assistant", "five")]


@pytest.mark.parametrize(
    ("gap", "newline"), [("\n\n", "\n"), ("\r\n\r\n", "\r\n"), ("\n", "\n"), ("\r\n", "\r\n"), ("\n \n", "\n")]
)
def test_turns_are_kept_whatever_ends_the_lines(gap: str, newline: str) -> None:
    text = "".join(f"{gap}{'Human' if role == 'user' else 'Assistant'}: {content}" for role, content in TURNS).replace(
        "\nline", f"{newline}line"
    )
    assert is_hh_text(text)
    assert shown(parse_turns(text)) == TURNS
    prompt, response = split_conversation(text, "chosen")
    assert (shown(prompt), response) == (TURNS[:-1], "five")


def test_a_further_turn_in_a_response_is_one_in_the_way_of_its_prompt() -> None:
    assert parse_response("a\nHuman: quoted", "chosen", "\n\nHuman: q\n\nAssistant:") == "a\nHuman: quoted"
    with pytest.raises(Defect):
        parse_response("a\nHuman: more", "chosen", "Human: q\nAssistant:")
    with pytest.raises(Defect):
        parse_response("a\r\n\r\nHuman: more", "chosen")


def test_prompt_without_its_closing_cue() -> None:
    assert shown(parse_prompt("\n\nHuman: hi\n\nAssistant:")) == [("user", "hi")]
    assert shown(parse_prompt("\n\nHuman: hi\n\nAssistant: begun")) == [("user", "hi"), ("assistant", "begun")]


def test_response_with_a_further_turn_is_refused() -> None:
    assert parse_response(" fine\n", "chosen") == "fine"
    with pytest.raises(Defect) as refused:
        parse_response("fine\n\nHuman: more?", "chosen")
    assert (refused.value.reason, refused.value.field) == ("turn_order", "chosen")


def test_conversation_must_end_with_the_assistant() -> None:
    prompt, response = split_conversation("\n\nHuman: a\n\nAssistant: b", "chosen")
    assert (shown(prompt), response) == ([("user", "a")], "b")
    for text in ("\n\nHuman: a", "no markers at all"):
        with pytest.raises(Defect) as refused:
            split_conversation(text, "rejected")
        assert (refused.value.reason, refused.value.field) == ("turn_order", "rejected")


words = st.text("abc .\n", max_size=12).map(str.strip).filter(lambda text: "\n\n" not in text)


@given(st.lists(words, min_size=1, max_size=6))
def test_rendered_turns_are_read_back(contents: list[str]) -> None:
    speakers = [("Human", "user"), ("Assistant", "assistant")]
    text = "".join(f"\n\n{speakers[n % 2][0]}: {content}" for n, content in enumerate(contents))
    assert shown(parse_turns(text)) == [(speakers[n % 2][1], content) for n, content in enumerate(contents)]
