"""Annotators one by one: shares by hand, planted faults found, and nobody flagged by chance."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from plumbline.tasks.data.clinic.annotators import LEVEL, describe_annotators
from plumbline.tasks.data.clinic.skill import dawid_skene
from plumbline.tasks.data.clinic.units import Units

Make = Callable[..., dict[str, Any]]
Group = Callable[..., Units]


def people(units: Units) -> dict[str, dict[str, Any]]:
    return {row["annotator"]: row for row in describe_annotators(units, dawid_skene(units), None)}


def crowd(judged: Make, seed: int, pairs: int, faults: dict[str, Callable[[str, dict[str, Any], Random], str]]) -> Any:
    """Six annotators who name the better response with chance 0.8; those in `faults` answer by their own rule."""
    rng = Random(seed)
    rows = []
    for n in range(pairs):
        better = rng.choice("ab")
        longer = (
            {"response_a": "long " * 30 + f"x{n}"} if rng.random() < 0.5 else {"response_b": "long " * 30 + f"x{n}"}
        )
        for name in ("ann", "bob", "cat", "dan", "eve", "zed"):
            row = judged(n, better, name, **longer)
            if rng.random() < 0.5:  # each sees their own order
                row["response_a"], row["response_b"] = row["response_b"], row["response_a"]
                row["label"] = "b" if better == "a" else "a"
            if rng.random() >= 0.8:
                row["label"] = "b" if row["label"] == "a" else "a"
            if name in faults:
                row["label"] = faults[name](row["label"], row, rng)
            rows.append(row)
    return rows


def test_shares_by_hand(group: Group, judged: Make) -> None:
    """Pair 1: ann a, bob a, cat b. Pair 2: ann tie, bob b. Of pair 3, ann's alone, the responses are of one length.

    Ann: on pair 1 the others are split, so it says nothing; on pair 2 the other says b and she a tie: 0 of 1.
    Bob: on pair 1 the others are split, on pair 2 the other says tie: 0 of 1. Cat: both others say a: 0 of 1.
    In pairs 1 and 2 response b is longer: ann 0 of 1, bob 1 of 2, cat 1 of 1. First shown: ann 2 of 2, bob 1 of 2.
    """
    same = {"response_a": "one", "response_b": "two"}
    rows = [judged(1, "a", "ann"), judged(1, "a", "bob"), judged(1, "b", "cat")]
    rows += [judged(2, "tie", "ann"), judged(2, "b", "bob"), judged(3, "a", "ann", **same)]
    found = people(group(rows))
    ann, bob, cat = (found[name] for name in ("ann", "bob", "cat"))
    assert [(row["agreement"]["value"], row["agreement"]["n"]) for row in (ann, bob, cat)] == [(0, 1), (0, 1), (0, 1)]
    assert [(row["longer"]["value"], row["longer"]["n"]) for row in (ann, bob, cat)] == [(0, 1), (0.5, 2), (1, 1)]
    assert [(row["first_shown"]["value"], row["first_shown"]["n"]) for row in (ann, bob)] == [(1, 2), (0.5, 2)]
    assert (ann["labels"], ann["ties"], bob["labels"]) == (3, 1, 2)
    assert all(row["suspicious"] == [] for row in found.values()), "of a label or two nothing follows"


@pytest.mark.parametrize(
    ("check", "rule"),
    [
        ("agreement", lambda label, row, rng: rng.choice("ab")),
        ("position", lambda label, row, rng: "a" if rng.random() < 0.5 else label),
        (
            "length",
            lambda label, row, rng: (
                label if rng.random() < 0.5 else ("a" if len(row["response_a"]) > len(row["response_b"]) else "b")
            ),
        ),
    ],
)
def test_a_planted_fault_is_found_and_nobody_else_is(
    group: Group, judged: Make, check: str, rule: Callable[[str, dict[str, Any], Random], str]
) -> None:
    found = people(group(crowd(judged, 3, 250, {"zed": rule})))
    assert check in {flag["check"] for flag in found["zed"]["suspicious"]}
    assert [name for name, row in found.items() if row["suspicious"]] == ["zed"]
    (flag,) = (flag for flag in found["zed"]["suspicious"] if flag["check"] == check)
    assert not flag["low"] <= flag["expected"] <= flag["high"]
    assert next(iter(found)) == "zed", "the suspicious come first"


def test_who_labels_in_haste_is_found(group: Group, judged: Make) -> None:
    """Forty labels each, a minute apart; zed takes five seconds. A night between two labels is no speed."""
    rows = []
    for name, seconds in {"ann": 60, "bob": 70, "cat": 50, "zed": 5}.items():
        for n in range(40):
            at = n * seconds + (8 * 3600 if n >= 20 else 0)
            time = f"2026-01-01T{at // 3600:02d}:{at // 60 % 60:02d}:{at % 60:02d}Z"
            rows.append(judged(n, "a", name, timestamp=time))
    found = people(group(rows))
    assert {name: row["seconds"] for name, row in found.items()} == {"zed": 5, "ann": 60, "bob": 70, "cat": 50}
    assert [flag["check"] for flag in found["zed"]["suspicious"]] == ["speed"]
    assert not any(found[name]["suspicious"] for name in ("ann", "bob", "cat"))


@pytest.mark.slow
def test_equal_annotators_are_rarely_flagged(group: Group, judged: Make) -> None:
    """The level holds for all annotators and checks together: of 30 crowds without a fault 5 % are 1.5."""
    flagged = sum(
        any(row["suspicious"] for row in describe_annotators(group(crowd(judged, seed, 80, {})), None, None))
        for seed in range(30)
    )
    assert LEVEL == 0.05
    assert flagged <= 4


def test_a_file_that_keeps_no_order_shows_no_position_bias(group: Group, judged: Make) -> None:
    found = people(group([judged(n, "a", name) for n in range(40) for name in ("ann", "bob")]))
    assert all(row["first_shown"]["value"] is None for row in found.values())
    assert all(row["suspicious"] == [] for row in found.values())
