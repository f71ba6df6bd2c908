"""The plain equivalents of the suites find what Great Expectations finds, and nothing passes them unchecked."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plumbline.data_contracts import preference_pair, unpaired_response
from plumbline.data_contracts.contract_suite import read_suite
from plumbline.data_contracts.errors import StageError
from plumbline.data_contracts.plain_checks import PLAIN
from plumbline.data_contracts.preference_pair import check_pairs
from plumbline.data_contracts.records import Message, Origin, PreferencePair, UnpairedResponse
from plumbline.data_contracts.unpaired_response import check_unpaired

# Each of Unicode's white space, look-alikes that are none, and what a pattern or a frame could trip over.
ODD = ["\u00a0", "\u2003", "\u3000", "\x0b", "\x0c", "\x1c", "\x1f", "\x85", "\u2028", "\u200b", "\ufeff", "\u180e"]
PLAIN_TEXTS = [
    "",
    " ",
    "a",
    " a ",
    "a b",
    "a  b",
    "a\u00a0b",
    "\x00",
    "\n",
    "a\n",
    "\r",
    "nan",
    "None",
    "0",
    "\U0001f600",
]
TEXTS = st.one_of(st.sampled_from([*ODD, *PLAIN_TEXTS]), st.text(max_size=4))
TIMES = st.one_of(
    st.none(),
    st.sampled_from(
        [
            "2025-03-31",
            "2025-03-31T09:30:00Z",
            "2025-03-31 09:30",
            "20250331T093000",
            "2025-W13-1",
            "2025-02-30",
            "",
            " ",
        ]
    ),
    st.text("0123456789-:TZW+. ", max_size=12),
)
TURNS = st.lists(
    st.builds(Message, role=st.sampled_from(["system", "user", "assistant", "tool"]), content=TEXTS), max_size=5
).map(tuple)
RECORD = {"id": TEXTS, "prompt": TURNS, "timestamp": TIMES}
PAIRS = st.fixed_dictionaries({**RECORD, "chosen": TEXTS, "rejected": TEXTS})
RESPONSES = st.fixed_dictionaries({**RECORD, "response": TEXTS, "desirable": st.booleans()})


def record(kind: type[Any], number: int, fields: dict[str, Any]) -> Any:
    return kind(source="s", origin=Origin(file="f", line=number), **fields)


@pytest.mark.slow
@settings(deadline=None, max_examples=12)
@given(st.lists(PAIRS, min_size=20, max_size=60))
def test_pairs_are_judged_alike(rows: list[dict[str, Any]]) -> None:
    pairs = [record(PreferencePair, number, fields) for number, fields in enumerate(rows, 1)]
    assert check_pairs(pairs, plainly=True) == check_pairs(pairs)


@pytest.mark.slow
@settings(deadline=None, max_examples=8)
@given(st.lists(RESPONSES, min_size=20, max_size=60))
def test_single_responses_are_judged_alike(rows: list[dict[str, Any]]) -> None:
    responses = [record(UnpairedResponse, number, fields) for number, fields in enumerate(rows, 1)]
    assert check_unpaired(responses, plainly=True) == check_unpaired(responses)


def pair() -> PreferencePair:
    prompt = (Message(role="user", content="q"),)
    return record(PreferencePair, 1, {"id": "1", "prompt": prompt, "chosen": "x", "rejected": "y"})  # type: ignore[no-any-return]


def changed(**expectation: Any) -> dict[str, Any]:
    """The suite of pairs with the check of `chosen` changed."""
    suite = copy.deepcopy(dict(read_suite(preference_pair.SUITE)))
    suite["expectations"][2].update(expectation)
    return suite


def test_the_suite_decides() -> None:
    suite = changed(kwargs={"column": "chosen", "regex": "^z"})
    assert [each.field for each in check_pairs([pair()], suite=suite, plainly=True)] == ["chosen"]
    assert check_pairs([pair()], plainly=True) == []


@pytest.mark.parametrize(
    "expectation",
    [
        {"type": "expect_column_values_to_be_unique", "kwargs": {"column": "chosen"}},
        {"kwargs": {"column": "chosen", "regex": "x", "mostly": 0.9}},
        {"kwargs": {"column": "nowhere", "regex": "x"}},
        {"kwargs": {"column": "chosen", "regex": "(unclosed"}},
    ],
)
def test_what_has_no_equivalent_is_an_error(expectation: dict[str, Any]) -> None:
    with pytest.raises(StageError, match="could not be run plainly"):
        check_pairs([pair()], suite=changed(**expectation), plainly=True)


@pytest.mark.parametrize("suite", [preference_pair.SUITE, unpaired_response.SUITE])
def test_every_expectation_has_an_equivalent(suite: Any) -> None:
    assert {each["type"] for each in read_suite(suite)["expectations"]} <= set(PLAIN)
