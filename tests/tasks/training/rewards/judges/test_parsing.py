from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plumbline.tasks.training.rewards.judges.parsing import Reply, Unusable, read_reply, read_verdict, response_format


def reply(content: str | None, *, refusal: str | None = None, finish: str | None = "stop") -> Reply:
    return Reply(content=content, refusal=refusal, finish_reason=finish, prompt_tokens=1, completion_tokens=1)


@pytest.mark.parametrize(
    ("content", "places"),
    [
        ('{"winner": "A"}', (1.0, 2.0)),
        (' \n{"winner":"B"}\n', (2.0, 1.0)),
        ('{"winner": "tie"}', (1.5, 1.5)),
    ],
)
def test_a_pair_verdict(content: str, places: tuple[float, ...]) -> None:
    assert read_verdict(reply(content), "pairwise", "AB") == places


def test_a_ranking_gives_each_position_its_place() -> None:
    """Best first C, A, B: A is second, B third, C first."""
    assert read_verdict(reply('{"ranking": ["C", "A", "B"]}'), "listwise", "ABC") == (2.0, 3.0, 1.0)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("A", "not_json"),
        ('The winner is {"winner": "A"}', "not_json"),
        ('{"winner": "A"} because it is short', "not_json"),
        ('```json\n{"winner": "A"}\n```', "not_json"),
        ('{"winner": "A"', "not_json"),
        ('{"winner": "A"},', "not_json"),
        ("[" * 100_000, "not_json"),
        ("9" * 10_000, "not_json"),
        ('{"winner": "A"}{"winner": "B"}', "two_verdicts"),
        ('{"winner": "A"}\n{"winner": "A"}', "two_verdicts"),
        ('{"winner": "A", "winner": "B"}', "two_verdicts"),
        ('["A"]', "wrong_schema"),
        ('"A"', "wrong_schema"),
        ('{"winner": 1}', "wrong_schema"),
        ('{"winner": ["A", "B"]}', "wrong_schema"),
        ('{"winner": "A", "confidence": 1}', "wrong_schema"),
        ('{"ranking": ["A", "B"]}', "wrong_schema"),
        ('{"winner": "C"}', "out_of_range"),
        ('{"winner": "a"}', "out_of_range"),
        ('{"winner": ""}', "out_of_range"),
        ("", "empty"),
        (None, "empty"),
        ("  \n", "empty"),
    ],
)
def test_anything_else_about_a_pair_is_unusable(content: str | None, reason: str) -> None:
    verdict = read_verdict(reply(content), "pairwise", "AB")
    assert isinstance(verdict, Unusable)
    assert verdict.reason == reason
    assert len(verdict.found) < 200


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"ranking": ["A", "B", "D"]}', "out_of_range"),
        ('{"ranking": ["A", "B", "B"]}', "duplicate_rank"),
        ('{"ranking": ["A", "B", "C", "A"]}', "duplicate_rank"),
        ('{"ranking": ["A", "B"]}', "incomplete"),
        ('{"ranking": []}', "incomplete"),
        ('{"ranking": "ABC"}', "wrong_schema"),
        ('{"ranking": [1, 2, 3]}', "wrong_schema"),
        ('{"winner": "A"}', "wrong_schema"),
    ],
)
def test_anything_else_about_a_list_is_unusable(content: str, reason: str) -> None:
    verdict = read_verdict(reply(content), "listwise", "ABC")
    assert isinstance(verdict, Unusable)
    assert verdict.reason == reason


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (reply('{"winner": "A"}', finish="length"), "truncated"),
        (reply('{"winner": "A"}', finish="content_filter"), "refused"),
        (reply('{"winner": "A"}', refusal="I cannot compare these."), "refused"),
    ],
)
def test_a_verdict_that_was_cut_or_refused_does_not_count(answer: Reply, reason: str) -> None:
    verdict = read_verdict(answer, "pairwise", "AB")
    assert isinstance(verdict, Unusable)
    assert verdict.reason == reason


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>busy</html>", b"[]", b"{}", b'{"choices": []}', b'{"choices": [{}]}', b'{"error": "x"}', b"\xff\xfe"],
)
def test_a_body_that_is_no_completion(body: bytes) -> None:
    found = read_reply(body)
    assert isinstance(found, Unusable)
    assert found.reason == "bad_response"


def test_two_choices_are_no_completion_that_was_asked_for() -> None:
    choice = {"message": {"content": '{"winner": "A"}'}, "finish_reason": "stop"}
    assert isinstance(read_reply(json.dumps({"choices": [choice, choice]}).encode()), Unusable)
    assert isinstance(read_reply(json.dumps({"choices": [choice]}).encode()), Reply)


def test_usage_may_be_missing() -> None:
    found = read_reply(b'{"choices": [{"message": {"content": "x"}}], "usage": null}')
    assert found == Reply(content="x", refusal=None, finish_reason=None, prompt_tokens=0, completion_tokens=0)


@pytest.mark.training
@given(st.text(max_size=40))
@settings(max_examples=200, deadline=None)
def test_only_the_three_objects_are_verdicts(content: str) -> None:
    """Whatever text comes, a verdict is read only from JSON that equals one of three objects."""
    verdict = read_verdict(reply(content), "pairwise", "AB")
    if not isinstance(verdict, Unusable):
        assert json.loads(content) in [{"winner": winner} for winner in ("A", "B", "tie")]


@given(st.permutations("ABCDEF"))
@settings(max_examples=50, deadline=None)
def test_places_invert_the_ranking(order: list[str]) -> None:
    places = read_verdict(reply(json.dumps({"ranking": order})), "listwise", "ABCDEF")
    assert not isinstance(places, Unusable)
    assert sorted("ABCDEF", key=lambda label: places["ABCDEF".index(label)]) == order


def test_the_schema_allows_what_the_parser_takes() -> None:
    pair = response_format("pairwise", "AB", "json_schema")
    ranked = response_format("listwise", "ABC", "json_schema")
    assert pair is not None
    assert ranked is not None
    assert pair["json_schema"]["schema"]["properties"] == {"winner": {"type": "string", "enum": ["A", "B", "tie"]}}
    assert ranked["json_schema"]["schema"]["properties"]["ranking"]["items"]["enum"] == ["A", "B", "C"]
    assert response_format("pairwise", "AB", "json_object") == {"type": "json_object"}
    assert response_format("pairwise", "AB", "none") is None
