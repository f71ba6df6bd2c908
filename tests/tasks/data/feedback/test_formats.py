"""Each format is recognised by its content, read to the same record, and refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plumbline.data_contracts.preference_pair import REASONS
from plumbline.tasks.data.feedback.defects import Defect
from plumbline.tasks.data.feedback.formats import RowContent, read_content, recognise


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


HH = "\n\nHuman: Is it blue?\n\nAssistant:"

# The same pair ("Is it blue?", "Yes, it is.", "No.") in every format.
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "standard": ("trl_standard", {"prompt": "Is it blue?", "chosen": "Yes, it is.", "rejected": "No."}),
    "standard, HH prompt": ("trl_standard_hh_prompt", {"prompt": HH, "chosen": " Yes, it is.", "rejected": " No."}),
    "conversational": (
        "trl_conversational",
        {"prompt": [user("Is it blue?")], "chosen": [assistant("Yes, it is.")], "rejected": [assistant("No.")]},
    ),
    "messages and texts": (
        "trl_conversational",
        {"prompt": [user("Is it blue?")], "chosen": "Yes, it is.", "rejected": "No."},
    ),
    "implicit messages": (
        "implicit_prompt",
        {
            "chosen": [user("Is it blue?"), assistant("Yes, it is.")],
            "rejected": [user("Is it blue?"), assistant("No.")],
        },
    ),
    "implicit texts": ("implicit_prompt", {"chosen": "Is it blue? Yes, it is.", "rejected": "Is it blue? No."}),
    "HH": ("hh_text", {"chosen": f"{HH} Yes, it is.", "rejected": f"{HH} No."}),
    "label a": (
        "response_label",
        {"prompt": "Is it blue?", "response_a": "Yes, it is.", "response_b": "No.", "label": "a"},
    ),
    "label b": (
        "response_label",
        {"prompt": "Is it blue?", "response_a": "No.", "response_b": "Yes, it is.", "label": "b"},
    ),
    "label, HH prompt": (
        "response_label_hh_prompt",
        {"prompt": HH, "response_a": " No.", "response_b": " Yes, it is.", "label": "b"},
    ),
}


def read(row: dict[str, Any]) -> RowContent:
    return read_content(row, recognise(row))


def refusal(row: dict[str, Any]) -> tuple[str, str | None]:
    with pytest.raises(Defect) as refused:
        read(row)
    return refused.value.reason, refused.value.field


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_reads_to_the_same_pair(name: str) -> None:
    expected, row = FORMATS[name]
    assert recognise(row) == expected
    content = read(row)
    assert [(turn.role, turn.content) for turn in content.prompt] == [("user", "Is it blue?")]
    assert (content.chosen, content.rejected) == ("Yes, it is.", "No.")


@pytest.mark.parametrize("name", FORMATS)
def test_optional_fields_and_extras_are_allowed_everywhere(name: str) -> None:
    form, row = FORMATS[name]
    optional = {"id": "x", "source": "s", "annotator": "n", "timestamp": "2025-01-01", "meta": {}, "votes": [1]}
    assert recognise({**row, **optional}) == form
    assert read({**row, **optional}) == read(row)


@pytest.mark.parametrize("name", FORMATS)
def test_an_unknown_field_is_refused_in_every_format(name: str) -> None:
    assert refusal({**FORMATS[name][1], "mood": 1}) == ("unknown_field", "mood")


CASES = [(name, field) for name, (_, row) in FORMATS.items() for field in row]


@pytest.mark.parametrize(("name", "field"), CASES)
@pytest.mark.parametrize("value", [7, 1.5, True, {"text": "x"}, ["x"]])
def test_a_wrong_type_is_refused_in_every_field(name: str, field: str, value: object) -> None:
    """The row stays recognisable by its other fields. A defect is always named, and never a crash."""
    reason, blamed = refusal({**FORMATS[name][1], field: value})
    assert reason == "wrong_type"
    assert blamed is not None


@pytest.mark.parametrize(("name", "field"), CASES)
def test_a_missing_field_is_refused_or_makes_another_format(name: str, field: str) -> None:
    """Without its prompt a row of chosen and rejected is an implicit prompt, which these responses do not share."""
    row = {key: value for key, value in FORMATS[name][1].items() if key != field}
    reason, blamed = refusal(row)
    if field == "prompt" and "chosen" in row:
        assert reason == "no_shared_prompt"
    else:
        assert (reason, blamed) == ("missing_field", field)


def test_a_row_of_no_format_says_what_it_has() -> None:
    with pytest.raises(Defect, match="found fields prompt, text"):
        recognise({"text": "x", "prompt": "y"})
    with pytest.raises(Defect, match="found no fields"):
        recognise({})


@pytest.mark.parametrize(
    ("label", "reason"), [("tie", "tie"), ("c", "bad_label"), ("", "bad_label"), (1, "wrong_type")]
)
def test_labels(label: object, reason: str) -> None:
    assert refusal({**FORMATS["label a"][1], "label": label}) == (reason, "label")


@pytest.mark.parametrize(
    ("change", "reason", "field"),
    [
        ({"prompt": [user("a"), {"role": "bot", "content": "b"}]}, "unknown_role", "prompt[1].role"),
        ({"prompt": [{"role": "user"}]}, "missing_field", "prompt[0].content"),
        ({"prompt": [{"content": "a"}]}, "missing_field", "prompt[0].role"),
        ({"prompt": [{"role": "user", "content": None}]}, "missing_field", "prompt[0].content"),
        ({"prompt": [{"role": "user", "content": ["a"]}]}, "wrong_type", "prompt[0].content"),
        ({"prompt": [{**user("a"), "name": "Bo"}]}, "unknown_field", "prompt[0].name"),
        ({"prompt": ["a"]}, "wrong_type", "prompt[0]"),
        ({"prompt": 7}, "wrong_type", "prompt"),
        ({"chosen": []}, "empty_text", "chosen"),
        ({"chosen": [assistant("a"), assistant("b")]}, "turn_order", "chosen"),
        ({"chosen": [user("a")]}, "turn_order", "chosen"),
        ({"rejected": "a"}, "wrong_type", "rejected"),
    ],
)
def test_defects_of_messages(change: dict[str, Any], reason: str, field: str) -> None:
    assert refusal({**FORMATS["conversational"][1], **change}) == (reason, field)


def test_null_message_fields_are_absent() -> None:
    """Parquet and `datasets` give every message the fields of all."""
    row = {**FORMATS["conversational"][1], "prompt": [{**user("Is it blue?"), "name": None}]}
    assert read(row) == read(FORMATS["conversational"][1])


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason", "field"),
    [
        ([user("a"), assistant("b")], [user("c"), assistant("d")], "no_shared_prompt", "rejected"),
        ([assistant("b")], [assistant("d")], "no_shared_prompt", "chosen"),
        ([user("a")], [user("a"), assistant("d")], "turn_order", "chosen"),
        ([user("a"), assistant("b")], [], "empty_text", "rejected"),
        ("Yes.", "No.", "no_shared_prompt", "rejected"),
        ("Same text", "Same  text", "identical_responses", "rejected"),
        (" ", "No.", "empty_text", "chosen"),
        (f"{HH} yes", "no", "turn_order", "rejected"),
        (f"{HH} yes", "", "empty_text", "rejected"),
        (f"{HH} yes", f"{HH} no\n\nHuman: more", "turn_order", "rejected"),
        (f"{HH} yes", "\n\nHuman: Else?\n\nAssistant: no", "no_shared_prompt", "rejected"),
    ],
)
def test_defects_of_implicit_prompts(chosen: object, rejected: object, reason: str, field: str) -> None:
    assert refusal({"chosen": chosen, "rejected": rejected}) == (reason, field)


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ("The sky is blue.", "The sky is black.", ("The sky is", "blue.", "black.")),
        ("Q?\nyes", "Q?\nno", ("Q?", "yes", "no")),
        ("Q? A", "Q? A and B", ("Q?", "A", "A and B")),
        ("Q?\n yes", "Q?\tno", ("Q?", "yes", "no")),
    ],
)
def test_implicit_texts_are_cut_between_words(chosen: str, rejected: str, expected: tuple[str, str, str]) -> None:
    """By characters the first pair shares "The sky is bl"; the cut goes back to the end of a word."""
    content = read({"chosen": chosen, "rejected": rejected})
    assert (content.prompt[0].content, content.chosen, content.rejected) == expected


def test_a_multi_turn_hh_pair() -> None:
    start = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    content = read({"chosen": f"{start} yes", "rejected": f"{start} no"})
    assert [(turn.role, turn.content) for turn in content.prompt] == [("user", "a"), ("assistant", "b"), ("user", "c")]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text("ab \n:HumanAsit", max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "x"]), inner),
    max_leaves=6,
)
fields = st.sampled_from(["prompt", "chosen", "rejected", "response_a", "response_b", "label", "id", "votes", "x"])


@given(st.dictionaries(fields, json_values))
def test_any_row_is_read_or_refused_with_a_known_reason(row: dict[str, Any]) -> None:
    present = {name: value for name, value in row.items() if value is not None}
    try:
        content = read(present)
    except Defect as defect:
        assert defect.reason in REASONS
    else:
        assert isinstance(content.chosen, str)
        assert isinstance(content.rejected, str)
