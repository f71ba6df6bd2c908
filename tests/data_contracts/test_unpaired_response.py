from __future__ import annotations

import json
from typing import Any

import pytest

from plumbline.data_contracts import unpaired_response
from plumbline.data_contracts.contract_suite import KnownIds, read_suite
from plumbline.data_contracts.errors import StageError
from plumbline.data_contracts.records import Message, Origin, PreferencePair, UnpairedResponse
from plumbline.data_contracts.unpaired_response import REASONS, SUITE, check_unpaired


def response(line: int = 1, **changes: Any) -> UnpairedResponse:
    fields: dict[str, Any] = {
        "id": f"r{line}",
        "prompt": (Message(role="user", content="Is it blue?"),),
        "response": "Yes.",
        "desirable": True,
        "source": "test",
        "origin": Origin(file="f", line=line),
    }
    return UnpairedResponse(**(fields | changes))


def turns(*roles: str, content: str = "x") -> tuple[Message, ...]:
    return tuple(Message(role=role, content=content) for role in roles)


@pytest.mark.parametrize(
    ("changes", "reason", "field"),
    [
        ({"id": " "}, "empty_text", "id"),
        ({"response": " \n"}, "empty_text", "response"),
        ({"prompt": ()}, "empty_text", "prompt"),
        ({"prompt": turns("user", content=" ")}, "empty_text", "prompt"),
        ({"prompt": turns("user", "user")}, "turn_order", "prompt"),
        ({"prompt": turns("user", "assistant")}, "last_turn_not_user", "prompt"),
        ({"timestamp": "31/03/2025"}, "bad_timestamp", "timestamp"),
    ],
)
def test_each_defect_is_named(changes: dict[str, Any], reason: str, field: str) -> None:
    found = check_unpaired([response(1), response(2, **changes)])
    assert {each.index for each in found} == {1}
    assert (found[0].reason, found[0].field) == (reason, field)


def test_sound_responses_satisfy_it() -> None:
    sound = [
        response(1),
        response(2, desirable=False, timestamp="2025-03-31T09:30:00Z"),
        response(3, prompt=turns("system", "user", "assistant", "tool", "assistant", "user")),
    ]
    assert check_unpaired(sound) == []
    assert check_unpaired([]) == []


def test_an_id_names_one_content_over_both_kinds_of_feedback() -> None:
    """The other judgement of a response is another content; the same once more is not."""
    known = KnownIds()
    assert (
        known.conflict(
            PreferencePair(
                id="taken",
                prompt=turns("user"),
                chosen="a",
                rejected="b",
                source="test",
                origin=Origin(file="pairs", line=4),
            )
        )
        == ""
    )
    found = check_unpaired(
        [response(1, id="x"), response(2, id="x"), response(3, id="x", desirable=False), response(4, id="taken")], known
    )
    assert [(each.index, each.reason) for each in found] == [(2, "id_conflict"), (3, "id_conflict")]
    assert "pairs line 4" in found[1].found


def test_the_suite_blames_with_reasons_of_the_contract() -> None:
    suite = read_suite(SUITE)
    assert suite["meta"] == {"contract": unpaired_response.CONTRACT, "version": unpaired_response.VERSION}
    assert {each["meta"]["quarantine_reason"] for each in suite["expectations"]} <= set(REASONS)
    assert all(set(each["meta"]) == {"quarantine_reason", "field", "expected"} for each in suite["expectations"])


def test_an_expectation_that_cannot_run_stops() -> None:
    broken = json.loads(SUITE.read_text())
    broken["expectations"][0]["kwargs"]["column"] = "nowhere"
    with pytest.raises(StageError, match="contract unpaired_response v1: expectation"):
        check_unpaired([response()], suite=broken)
