"""Votes as raw rows hold them, and their units."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from plumbline.tasks.data.clinic.units import Units
from plumbline.tasks.data.feedback.votes import Vote, VotesRead, read_votes
from plumbline.tasks.data.feedback.withdrawals import Withdrawal, Withdrawals
from plumbline.tasks.params.feedback import FeedbackParams

Row = dict[str, Any]
Make = Callable[..., Row]


def told(vote: Vote) -> tuple[str, str | None, bool | None]:
    return vote.label, vote.annotator, vote.chosen_first


def test_a_row_is_a_vote_with_its_position(read: Callable[..., VotesRead], judged: Make) -> None:
    found = read([judged(1, "a", "ann"), judged(2, "b", "bob"), judged(3, "tie", "ann")])
    assert [told(vote) for vote in found.votes] == [
        ("chosen", "ann", True),
        ("chosen", "bob", False),
        ("tie", "ann", True),
    ]
    assert (found.read, len(found.pairs), found.ties, found.set_aside) == (3, 2, 1, 0)
    assert found.votes[1].pair.chosen == "second answer2 texts2"
    assert found.votes[2].pair.chosen == "first reply3 words3"


def test_chosen_and_rejected_alone_keep_no_position(read: Callable[..., VotesRead]) -> None:
    found = read([{"prompt": "why?", "chosen": "because", "rejected": "no idea", "annotator": "ann"}])
    assert [told(vote) for vote in found.votes] == [("chosen", "ann", None)]


def test_every_vote_of_a_row_counts_for_the_row_s_own_sides(read: Callable[..., VotesRead], judged: Make) -> None:
    votes = [{"annotator": name, "label": label} for name, label in (("ann", "a"), ("bob", "b"), ("eve", "tie"))]
    for label, expected in (("b", ("rejected", "chosen", "tie")), ("tie", ("chosen", "rejected", "tie"))):
        found = read([judged(1, label, votes=votes)])
        assert [vote.label for vote in found.votes] == list(expected)
        assert [vote.annotator for vote in found.votes] == ["ann", "bob", "eve"]


@pytest.mark.parametrize(
    ("votes", "labels"), [(["a", "a", "b"], ["chosen", "chosen", "rejected"]), ("unreadable", ["chosen"])]
)
def test_unsigned_votes_and_those_that_cannot_be_read(
    read: Callable[..., VotesRead], judged: Make, votes: Any, labels: list[str]
) -> None:
    found = read([judged(1, "a", votes=votes)])
    assert [(vote.label, vote.annotator) for vote in found.votes] == [(label, None) for label in labels]


def test_numbers_of_votes_are_votes(read: Callable[..., VotesRead], judged: Make) -> None:
    row = {name: value for name, value in judged(1, "a").items() if name != "label"}
    found = read([{**row, "votes_a": 2, "votes_b": 1, "votes_tie": 1}])
    assert sorted(vote.label for vote in found.votes) == ["chosen", "chosen", "rejected", "tie"]


def test_what_cannot_be_read_is_set_aside(read: Callable[..., VotesRead], judged: Make) -> None:
    same = judged(2, "tie") | {"response_b": judged(2, "tie")["response_a"]}
    found = read([judged(1, "a"), same, {"prompt": "why?"}])
    assert (found.read, len(found.pairs), found.ties, found.set_aside) == (3, 1, 0, 2)
    assert len(found.votes) == 1


def test_a_withdrawn_annotator_is_heard_in_no_row(tmp_path: Path, judged: Make) -> None:
    path = tmp_path / "rows.jsonl"
    votes = [{"annotator": "ann", "label": "a"}, {"annotator": "bob", "label": "tie"}]
    rows = [judged(1, "a", "ann"), judged(2, "tie", "ann"), judged(3, "b", "bob"), judged(4, "tie", votes=votes)]
    path.write_bytes(b"\n".join(map(orjson.dumps, rows)))
    entry = Withdrawal(kind="annotator", name="ann", reason="asked", by="me", at="2026-01-01T00:00:00Z")
    gone = Withdrawals((entry,), {("annotator", "ann"): entry})
    found = read_votes([("human_pairs", "rows.jsonl", path)], FeedbackParams(), gone)
    assert [vote.annotator for vote in found.votes] == ["bob", "bob"]


def test_a_unit_is_the_prompt_and_both_responses_in_any_order(group: Callable[..., Units], judged: Make) -> None:
    turned = judged(1, "a", "bob")
    turned["response_a"], turned["response_b"] = turned["response_b"], turned["response_a"].upper()
    units = group([judged(1, "a", "ann"), turned, judged(1, "tie", "eve"), judged(2, "a", "ann")])
    assert sorted(map(tuple, units.counts().tolist())) in ([(0, 1, 0), (1, 1, 1)], [(1, 0, 0), (1, 1, 1)])
    assert units.annotators == ["ann", "bob", "eve"]
    assert (units.shown[:2] == units.side[:2]).all(), "both preferred the first that they saw"
    assert len(units.ids[0]) == 2, "ids are those of content where the rows give none"


def test_of_one_annotator_s_votes_on_a_unit_the_latest_counts(group: Callable[..., Units], judged: Make) -> None:
    """Three votes of ann: a at noon, b at one, a again at eleven. The one of one o'clock counts; she changed twice."""
    times = [f"2026-01-01T{hour}:00:00Z" for hour in (12, 13, 11)]
    rows = [judged(1, label, "ann", timestamp=time) for label, time in zip("aba", times, strict=True)]
    units = group([*rows, judged(1, "b"), judged(1, "b")])
    assert len(units.unit) == 3, "one of hers, and two that nobody signed"
    assert set(units.side) == {units.side[1]}
    assert (units.repeats, units.changed) == (2, 2)


def test_the_name_of_a_unit_does_not_follow_from_its_label(group: Callable[..., Units], judged: Make) -> None:
    names = {group([judged(1, label)]).digest(0) for label in ("a", "b", "tie")}
    assert len(names) == 1
