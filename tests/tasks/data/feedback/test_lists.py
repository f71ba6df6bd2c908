"""Lists and ratings become pairs by the rule of params; every row is in a pair, a tie, or set aside."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest

from plumbline.data_contracts.records import PreferencePair, Quarantined
from plumbline.tasks.data.feedback import groups
from plumbline.tasks.data.feedback.human_pairs import read
from plumbline.tasks.data.feedback.lists import MOST
from plumbline.tasks.data.feedback.rows import ReadRow
from plumbline.tasks.data.feedback.validate import check_rows, sort_rows
from plumbline.tasks.data.feedback.withdrawals import Withdrawal, Withdrawals
from plumbline.tasks.params.feedback import FeedbackParams
from plumbline.tasks.params.feedback_limits import LIMITS
from plumbline.tasks.params.feedback_rules import ListPairs, Rules

ANSWERS = [
    {"answer": text, "rank": rank, "model": f"m{rank}"} for text, rank in (("b", 2), ("a", 1), ("d", 4), ("c", 3))
]
NECTAR = {"prompt": "\n\nHuman: q\n\nAssistant: ", "answers": ANSWERS, "source": ["sharegpt"], "turns": 1}


def read_rows(tmp_path: Path, *rows: dict[str, Any], rule: ListPairs = "best_vs_rest") -> list[ReadRow]:
    (tmp_path / "f").write_bytes(b"\n".join(map(orjson.dumps, rows)))
    return list(read(tmp_path / "f", "f", LIMITS, Rules(rule)))


def pairs(rows: list[ReadRow]) -> list[tuple[str, str]]:
    return [(row.outcome.chosen, row.outcome.rejected) for row in rows if isinstance(row.outcome, PreferencePair)]


def reasons(rows: list[ReadRow]) -> Counter[str]:
    return Counter(row.outcome.reason for row in rows if isinstance(row.outcome, Quarantined))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("best_vs_rest", ["ab", "ac", "ad"]),
        ("adjacent", ["ab", "bc", "cd"]),
        ("all", ["ab", "ac", "ad", "bc", "bd", "cd"]),
    ],
)
def test_the_rules_of_a_list(tmp_path: Path, rule: ListPairs, expected: list[str]) -> None:
    rows = read_rows(tmp_path, NECTAR, rule=rule)
    assert pairs(rows) == [tuple(pair) for pair in expected]
    first = rows[0].outcome
    assert isinstance(first, PreferencePair)
    assert first.metadata == {
        "margin": 1.0,
        "list_pairs": len(expected),
        "chosen_model": "m1",
        "rejected_model": "m2",
        "source": ["sharegpt"],
        "turns": 1,
    }


def test_the_best_with_a_random_one_is_the_same_each_time(tmp_path: Path) -> None:
    lists = [{**NECTAR, "answers": [{**each, "answer": f"{each['answer']}{n}"} for each in ANSWERS]} for n in range(40)]
    found = pairs(read_rows(tmp_path, *lists, rule="best_vs_random"))
    assert found == pairs(read_rows(tmp_path, *lists, rule="best_vs_random"))
    assert {chosen[0] for chosen, _ in found} == {"a"}
    assert {rejected[0] for _, rejected in found} == {"b", "c", "d"}


def test_pairs_of_a_list_have_ids_of_their_own(tmp_path: Path) -> None:
    rows = read_rows(tmp_path, {**NECTAR, "id": 7})
    ids = [row.outcome.id for row in rows if isinstance(row.outcome, PreferencePair)]
    assert ids == ["7#2-1", "7#2-4", "7#2-3"]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "responses": ["b", "a", "c"], "ranking": [2, 1, 3]},
        {"prompt": "q", "responses": ["b", "a", "c"], "scores": [0.5, 0.9, -1]},
        {"instruction": "q", "generations": ["b", "a", "c"], "ratings": ["3", "5", "1"]},
        {
            "instruction": "q",
            "completions": [
                {"response": text, "overall_score": score} for text, score in (("b", 5), ("a", 9), ("c", 1))
            ],
        },
        {
            "question": "q",
            "outputs": [{"text": text, "score": score} for text, score in (("b", 5), ("a", 9.5), ("c", 1))],
        },
        {
            "prompt": "q",
            "answers": [
                {"answer": {"role": "assistant", "content": t}, "rank": n} for n, t in ((2, "b"), (1, "a"), (3, "c"))
            ],
        },
    ],
)
def test_lists_of_other_shapes(tmp_path: Path, row: dict[str, Any]) -> None:
    assert pairs(read_rows(tmp_path, row)) == [("a", "b"), ("a", "c")]


def test_ties_of_a_list_are_counted(tmp_path: Path) -> None:
    row = {"prompt": "q", "responses": ["a", "b", "c"], "scores": [1, 1, 0]}
    rows = read_rows(tmp_path, row)
    assert pairs(rows) == [("a", "c")]
    assert reasons(rows) == {"tie": 1}


@pytest.mark.parametrize(
    ("row", "reason", "field"),
    [
        ({"answers": ANSWERS[:1]}, "no_pair", "answers"),
        ({"answers": [{"answer": str(n), "rank": n} for n in range(MOST + 1)]}, "too_long", "answers"),
        ({"answers": [ANSWERS[0], {"rank": 1}]}, "missing_field", "answers[1].answer"),
        ({"answers": [ANSWERS[0], {"answer": "x"}]}, "missing_field", "answers[1].overall_score"),
        ({"answers": [ANSWERS[0], {"answer": "x", "rank": "first"}]}, "bad_label", "answers[1].rank"),
        ({"answers": ["a", "b"]}, "wrong_type", "answers[0]"),
        ({"answers": {"a": 1}}, "wrong_type", "answers"),
    ],
)
def test_a_list_that_is_not_sound_is_one_refused_row(
    tmp_path: Path, row: dict[str, Any], reason: str, field: str
) -> None:
    (found,) = read_rows(tmp_path, {"prompt": "q", **row})
    assert isinstance(found.outcome, Quarantined)
    assert (found.outcome.reason, found.outcome.field) == (reason, field)


def rated(prompt: str, response: str, rating: float, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "response": response, "rating": rating, **more}


def test_rows_of_one_prompt_are_compared_wherever_they_lie(tmp_path: Path) -> None:
    """Prompt q has lines 1, 3 and 5: the best is on line 3. r has one row, s two of the same rating."""
    rows = read_rows(
        tmp_path,
        rated("q", "b", 3, id="one", annotator="n"),
        rated("r", "x", 5),
        rated("q", "a", 5, id="three", annotator="n"),
        rated("s", "x", 2),
        rated("q", "c", 1, annotator="m"),
        rated("s", "y", 2),
    )
    assert [
        (row.line, row.outcome.chosen, row.outcome.rejected) for row in rows if isinstance(row.outcome, PreferencePair)
    ] == [
        (3, "a", "b"),
        (3, "a", "c"),
    ]
    first, second, alone, tie = (row.outcome for row in rows)
    assert isinstance(first, PreferencePair) and isinstance(second, PreferencePair)
    assert (first.id, first.annotator, second.annotator) == ("three-one", "n", None)
    assert first.metadata["lines"] == [1, 3] and second.metadata["annotators"] == ["m", "n"]
    assert (first.metadata["score_chosen"], first.metadata["score_rejected"], first.metadata["margin"]) == (5, 3, 2)
    assert isinstance(alone, Quarantined) and (alone.reason, alone.line) == ("no_pair", 2)
    assert isinstance(tie, Quarantined) and (tie.reason, tie.line) == ("tie", 4)


def test_a_response_that_several_rated_has_its_mean(tmp_path: Path) -> None:
    """a: (5 + 2) / 2 = 3.5, b: 4."""
    rows = read_rows(tmp_path, rated("q", "a", 5), rated("q", "b", 4), rated("q", "a", 2))
    assert pairs(rows) == [("b", "a")]


def test_every_rated_row_is_accounted_for_by_every_rule(tmp_path: Path) -> None:
    """Each line is in a pair (its `lines`), in a tie, or set aside by itself."""
    given = [rated(f"q{n % 4}", f"r{n}", n % 3 + 1) for n in range(23)]
    for rule in ("best_vs_rest", "adjacent", "all", "best_vs_random"):
        seen: set[int] = set()
        for row in read_rows(tmp_path, *given, rule=rule):
            paired = isinstance(row.outcome, PreferencePair)
            seen |= set(row.outcome.metadata["lines"]) if isinstance(row.outcome, PreferencePair) else {row.line}
            assert paired or reasons([row]).keys() <= {"tie", "no_pair"}
        if rule != "best_vs_rest":  # a tie names the line of one of its two rows
            assert len(seen) > 15
        assert seen <= set(range(1, 24))


def test_thumbs_are_pairs_where_a_person_says_so(tmp_path: Path) -> None:
    up, down = ({"prompt": "q", "response": text, "thumb": thumb} for text, thumb in (("a", "up"), ("b", "down")))
    assert pairs(read_rows(tmp_path, down, up)) == [("a", "b")]


def test_a_bad_rating_is_refused_before_it_is_compared(tmp_path: Path) -> None:
    rows = read_rows(tmp_path, rated("q", "a", 9), rated("q", "b", 2), rated(" ", "c", 2), rated("q", "d", 1))
    assert reasons(rows) == {"bad_label": 1, "empty_text": 1}
    assert pairs(rows) == [("b", "d")]
    (first, *_) = rows
    assert isinstance(first.outcome, Quarantined) and "feedback.rating_scale" in first.outcome.expected


def test_many_responses_to_one_prompt_are_lists_of_their_own(tmp_path: Path) -> None:
    rows = read_rows(tmp_path, *(rated("q", f"r{n}", n % 5 + 1) for n in range(3 * MOST)))
    assert len(rows) == 3 * (MOST - 1)


def test_rated_rows_wait_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database is a temporary file of SQLite, not its memory."""
    opened = []

    def connect(name: str) -> sqlite3.Connection:
        opened.append(name)
        return real(name)

    real = sqlite3.connect
    monkeypatch.setattr(groups.sqlite3, "connect", connect)
    read_rows(tmp_path, rated("q", "a", 1), rated("q", "b", 2))
    assert opened == [""]


def test_the_account_of_lists_and_ratings_closes(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(
        b"\n".join(map(orjson.dumps, [NECTAR, rated("q", "a", 5), rated("q", "b", 1), {"x": 1}]))
    )
    report = sort_rows([("human_pairs", "f", tmp_path / "f")], FeedbackParams(list_pairs="all"), tmp_path)
    assert (report["read"], report["accepted"], report["reasons"]) == (8, 7, {"missing_field": 1})


def test_each_row_that_came_by_itself_has_one_verdict() -> None:
    texts = [
        json.dumps(row).encode()
        for row in (NECTAR, rated("q", "a", 5), {"prompt": "p", "chosen": "x", "rejected": "y"})
    ]
    first, second, third = check_rows("human_pairs", texts, "request")
    assert isinstance(first, PreferencePair) and isinstance(third, PreferencePair)
    assert isinstance(second, Quarantined) and second.reason == "no_pair"


def test_a_withdrawn_annotator_takes_out_what_he_voted_or_rated(tmp_path: Path) -> None:
    entry = Withdrawal("annotator", "n", "asked", "me", "now")
    withdrawn = Withdrawals((entry,), {("annotator", "n"): entry})
    votes = {"prompt": "p", "response_a": "x", "response_b": "y", "votes": [{"annotator": "n", "label": "a"}]}
    given = [
        votes,
        rated("q", "a", 5, annotator="n"),
        rated("q", "b", 1, annotator="m"),
        rated("r", "a", 5),
        rated("r", "b", 1),
    ]
    (tmp_path / "f").write_bytes(b"\n".join(map(orjson.dumps, given)))
    report = sort_rows([("human_pairs", "f", tmp_path / "f")], FeedbackParams(), tmp_path, withdrawn=withdrawn)
    assert (report["accepted"], report["reasons"]) == (1, {"withdrawn": 2})
