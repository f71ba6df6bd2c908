"""Pairs worth a second look: their order by hand, rows without a hint, and the way back through ingestion."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import orjson
import pytest

from plumbline.data_contracts.records import Message
from plumbline.tasks.data.clinic.examine import Examined, examine
from plumbline.tasks.data.clinic.second_look import NEAR, THIN, Evidence, rank_doubts, to_label
from plumbline.tasks.data.clinic.units import group_votes
from plumbline.tasks.data.curation.curate import Curated, curate
from plumbline.tasks.data.feedback.votes import VotesRead
from plumbline.tasks.params.curation import CurationParams, MatchingParams, SplitParams

Row = dict[str, Any]
Make = Callable[..., Row]
Read = Callable[..., VotesRead]
PARAMS = CurationParams(split=SplitParams(on_empty="warn"))
NO_EVIDENCE = Evidence({}, frozenset())


def look(read: VotesRead, *, most: int = 50, score: Any = None) -> tuple[Examined, Curated]:
    curated = curate(read.pairs, PARAMS, 0)
    return examine(read, curated, PARAMS.matching, 0, most=most, score=score), curated


def kept(curated: Curated) -> list[str]:
    return [pair.chosen for split in (curated.train, curated.validation, curated.test) for pair in split]


def test_log_odds_by_hand(read: Read, judged: Make) -> None:
    """Unsigned votes, so that those of the votes are log((against + ½) / (for + ½)).

    Pair 1: 2 against 1, log(1.5/2.5). Pair 2: 1 against 1, 0. Pair 3: no vote against it, log(0.5/1.5), the reward
    model for the other by 2 nats. Pair 4 has a low margin and pair 5 an opposed near prompt. Nothing against pair 6.
    """
    votes: dict[int, Any] = {1: ["a", "a", "b"], 2: ["a", "b", "tie"], 3: ["a"], 5: ["a"], 6: ["a"]}
    rows = [judged(n, "a", votes=votes[n], id=f"p{n}", margin=3.0) for n in votes]
    units = group_votes(read([*rows, judged(4, "a", id="p4", margin=0.5)]).votes, MatchingParams())
    place = {next(iter(ids)): unit for unit, ids in enumerate(units.ids)}
    labels = {unit: units.sides[unit].index(units.pairs[unit].chosen) for unit in place.values()}
    third = (0.0, 2.0) if labels[place["p3"]] == 0 else (2.0, 0.0)
    agreeing = (5.0, 4.9) if labels[place["p6"]] == 0 else (4.9, 5.0)
    evidence = Evidence({place["p3"]: third, place["p6"]: agreeing}, frozenset({"p5"}))
    found = rank_doubts(units, labels, None, evidence)
    alone = math.log(0.5 / 1.5)
    expected = {"p3": alone + 2, "p5": alone + NEAR, "p2": 0.0, "p1": math.log(1.5 / 2.5), "p4": alone + THIN}
    assert [next(iter(units.ids[doubt.unit])) for doubt in found] == sorted(expected, key=lambda name: -expected[name])
    assert [doubt.log_odds for doubt in found] == pytest.approx(sorted(expected.values(), reverse=True))
    reasons = {next(iter(units.ids[doubt.unit])): doubt.reasons for doubt in found}
    assert reasons["p1"] == ("2 of 3 votes are for the label",)
    assert reasons["p3"] == ("the reward model prefers the other response by 2.0 nats",)


def test_rows_to_label_hold_no_hint_of_the_label(read: Read, judged: Make) -> None:
    """The same pairs with every label turned give the same rows, byte for byte; and either response comes first."""
    rows = [judged(n, label, name) for n in range(30) for name, label in (("ann", "a"), ("bob", "b"), ("eve", "a"))]
    turned = [{**row, "label": "b" if row["label"] == "a" else "a"} for row in rows]
    given, opposite = look(read(rows))[0], look(read(turned))[0]
    assert len(given.rows) == 30
    assert [orjson.dumps(row) for row in given.rows] == [orjson.dumps(row) for row in opposite.rows]
    first = sum(row["response_a"].startswith("first") for row in given.rows)
    assert 8 <= first <= 22
    assert all(row["label"] is None and row["annotator"] is None for row in given.rows)
    assert {row["clinic"] for row in given.reasons} == {row["metadata"]["clinic"] for row in given.rows}


def test_the_seed_draws_the_order(read: Read, judged: Make) -> None:
    votes = read([judged(n, label) for n in range(20) for label in "ab"]).votes
    units = group_votes(votes, MatchingParams())
    doubts = rank_doubts(units, dict.fromkeys(range(len(units.pairs)), 0), None, NO_EVIDENCE)
    orders = [[row["response_a"] for row in to_label(units, doubts, seed)] for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize(("answers", "changed"), [(["other", "other"], True), (["same", "other"], False)])
def test_votes_that_come_back_change_the_label_by_the_rule_of_votes(
    read: Read, judged: Make, answers: Sequence[str], changed: bool
) -> None:
    """One vote for a label: two new ones against it turn it (2 to 1), one against and one for it do not (1 to 2)."""
    rows = [judged(1, "a", "ann", id="p1"), *(judged(n, "a", "ann", id=f"p{n}") for n in range(2, 8))]
    doubted = {"first reply1 words1": -3.0}

    def score(prompts: Sequence[Sequence[Message]], responses: Sequence[str]) -> list[float]:
        return [doubted.get(response, 0.0) for response in responses]

    found, _ = look(read(rows), score=score)
    (asked,), (why,) = found.rows, found.reasons
    assert why["ids"] == ["p1"]
    assert why["label"] == "first reply1 words1"
    back = []
    for number, answer in enumerate(answers):
        side = "a" if (asked["response_a"] == why["label"]) == (answer == "same") else "b"
        back.append({**asked, "label": side, "annotator": f"new {number}"})
    again = read([*rows, *back])
    assert again.set_aside == 0
    _, curated = look(again)
    assert len(kept(curated)) == len(rows)
    assert ("second answer1 texts1" in kept(curated)) is changed
    assert ("first reply1 words1" in kept(curated)) is not changed


def test_a_contradiction_without_a_winner_is_offered(read: Read, judged: Make) -> None:
    """One vote for each side: curation sets both aside. A third vote would bring the pair back, so it is offered."""
    rows = [judged(1, "a", "ann"), judged(1, "b", "bob"), *(judged(n, "a", "ann") for n in range(2, 8))]
    found, curated = look(read(rows))
    assert not {"first reply1 words1", "second answer1 texts1"} & set(kept(curated))
    (row,) = found.rows
    _, again = look(read([*rows, {**row, "label": "a", "annotator": "eve"}]))
    assert row["response_a"] in kept(again)


def test_near_prompts_with_the_opposite_preference_are_offered(read: Read, judged: Make) -> None:
    long = "Describe the history of the lighthouse on the northern coast of the island in the {} century please."
    two = {"response_a": "It was built of stone by many hands.", "response_b": "Nobody knows much about those years."}
    rows = [{"prompt": long.format(word), "label": label, **two} for word, label in (("last", "a"), ("first", "b"))]
    other = [
        {"prompt": f"topic{n}?", "response_a": f"x{n} y{n}", "response_b": f"z{n}", "label": "a"} for n in range(4)
    ]
    found, curated = look(read([*rows, *other]))
    assert curated.report["opposed_near_prompts"]["count"] == 1
    assert [row["reasons"] for row in found.reasons] == [["a near prompt has the opposite preference"]] * 2


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ("no annotators", {"annotators": "no row names its annotator", "alpha": "not enough overlap"}),
        ("one annotator", {"annotators": "one annotator, with nobody to compare with", "alpha": "not enough overlap"}),
        ("one label", {"position": "every label is for the first response", "alpha": "not enough overlap"}),
        ("ties only", {"alpha": "every label is a tie", "leak": "found 0 in 0"}),
        ("nothing", {"alpha": "not enough overlap", "annotators": "no row names its annotator"}),
    ],
)
def test_too_little_data_is_said_plainly(read: Read, judged: Make, rows: str, told: dict[str, str]) -> None:
    given = {
        "no annotators": [judged(n, "ab"[n % 2]) for n in range(12)],
        "one annotator": [judged(n, "ab"[n % 2], "ann") for n in range(12)],
        "one label": [judged(n, "a", f"ann{n % 3}") for n in range(12)],
        "ties only": [judged(n, "tie", name) for n in range(12) for name in ("ann", "bob")],
        "nothing": [{"prompt": "why?"}],
    }[rows]
    report = look(read(given))[0].report
    why = {
        "annotators": report["annotators"]["why"],
        "alpha": report["alpha"].get("why"),
        "position": report["position"].get("why"),
        "leak": report["leak"]["accuracy"].get("why"),
    }
    for figure, text in told.items():
        assert text in why[figure]
    assert all(report["ceiling"][end]["value"] is None for end in ("least", "most"))


def test_the_same_votes_give_the_same_report(read: Read, judged: Make) -> None:
    rows = [judged(n, "ab"[n * k % 2], f"ann{k}") for n in range(60) for k in range(3)]
    one, two = look(read(rows))[0], look(read(rows))[0]
    assert orjson.dumps(one.report) == orjson.dumps(two.report)
    assert (one.rows, one.reasons) == (two.rows, two.reasons)
