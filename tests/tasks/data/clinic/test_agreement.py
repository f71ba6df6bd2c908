"""Agreement and the accuracy ceiling, by hand and against a naive computation."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import permutations
from random import Random
from typing import Any

import numpy as np
import pytest

from plumbline.tasks.data.clinic.agreement import NO_OVERLAP, alpha, ceiling, raw_agreement, upper_bound
from plumbline.tasks.data.clinic.units import Units

Make = Callable[..., dict[str, Any]]
Group = Callable[..., Units]


def naive_alpha(units: list[list[int]]) -> float:
    """1 - Do/De over all ordered pairs of values: within units (each weighted by 1/(m-1)), and among all values."""
    values = [value for unit in units for value in unit]
    n = len(values)
    observed = sum(sum(a != b for a, b in permutations(unit, 2)) / (len(unit) - 1) for unit in units) / n
    expected = sum(a != b for a, b in permutations(values, 2)) / (n * (n - 1))
    return 1 - observed / expected


def votes(units: Units) -> list[list[int]]:
    found = [units.side[units.unit == unit].tolist() for unit in range(len(units.pairs))]
    return [unit for unit in found if len(unit) > 1]


def random_rows(judged: Make, seed: int, pairs: int = 60) -> list[dict[str, Any]]:
    rng = Random(seed)
    people = ["ann", "bob", "eve", "joe"]
    return [
        judged(n, rng.choices(["a", "b", "tie"], [5, 3, 1])[0], name)
        for n in range(pairs)
        for name in rng.sample(people, rng.randint(1, 4))
    ]


@pytest.mark.parametrize("seed", range(4))
def test_alpha_is_that_of_a_naive_computation(group: Group, judged: Make, seed: int) -> None:
    units = group(random_rows(judged, seed))
    found = alpha(units, 0)
    assert found["value"] == pytest.approx(naive_alpha(votes(units)), abs=1e-12)
    assert found["low"] < found["value"] < found["high"]
    assert found["n"] == len(votes(units))
    assert alpha(units, 0) == found, "the seed repeats the interval"


def test_agreement_by_hand(group: Group, judged: Make) -> None:
    """Ten units of three votes: five say aaa (share of agreeing pairs 1), five aab (1 of 3). Mean 2/3.

    So the ceiling is at least 2/3, and at most (1 + sqrt(1/3)) / 2 = 0.789.
    """
    labels = ["aaa"] * 5 + ["aab"] * 5
    rows = [judged(n, label, f"ann{k}") for n, three in enumerate(labels) for k, label in enumerate(three)]
    units = group(rows)
    assert raw_agreement(units, 0)["value"] == pytest.approx(2 / 3)
    found = ceiling(units, 0)
    assert found["least"]["value"] == pytest.approx(2 / 3)
    assert found["most"]["value"] == pytest.approx((1 + math.sqrt(1 / 3)) / 2)
    assert found["most"]["low"] < found["most"]["value"] < found["most"]["high"]


def test_ties_are_a_label_of_agreement_and_none_of_the_ceiling(group: Group, judged: Make) -> None:
    """Ten units a, a, tie: one pair of votes in three agrees; of the votes that prefer, all do."""
    rows = [judged(n, label, f"ann{k}") for n in range(10) for k, label in enumerate(["a", "a", "tie"])]
    units = group(rows)
    assert raw_agreement(units, 0)["value"] == pytest.approx(1 / 3)
    assert ceiling(units, 0)["least"]["value"] == ceiling(units, 0)["most"]["value"] == 1


def test_the_true_ceiling_lies_between_its_bounds() -> None:
    """With p drawn from any law, E max(p, 1-p) is in the bounds that E[p² + (1-p)²] gives."""
    generator = np.random.default_rng(0)
    for a, b in ((1, 1), (0.3, 0.3), (5, 2), (50, 50)):
        p = generator.beta(a, b, 100_000)
        agreement = float((p**2 + (1 - p) ** 2).mean())
        assert agreement <= np.maximum(p, 1 - p).mean() <= upper_bound(agreement) + 1e-12


def test_chance_and_less_have_the_ceiling_of_a_coin(group: Group, judged: Make) -> None:
    """Two votes that always differ: agreement 0, so the bounds are both one half."""
    rows = [judged(n, label, name) for n in range(12) for name, label in (("ann", "a"), ("bob", "b"))]
    found = ceiling(group(rows), 0)
    assert (found["least"]["value"], found["most"]["value"]) == (0.5, 0.5)


@pytest.mark.parametrize("figure", [alpha, raw_agreement, lambda units, seed: ceiling(units, seed)["most"]])
def test_without_overlap_nothing_is_claimed(group: Group, judged: Make, figure: Callable[..., Any]) -> None:
    alone = figure(group([judged(n, "a", "ann") for n in range(30)]), 0)
    assert (alone["value"], alone["why"], alone["n"]) == (None, NO_OVERLAP, 0)
    few = figure(group([judged(n, "a", name) for n in range(3) for name in ("ann", "bob")]), 0)
    assert few["value"] is None
    assert "found 3" in few["why"]


def test_ties_only_have_no_alpha(group: Group, judged: Make) -> None:
    rows = [judged(n, "tie", name) for n in range(12) for name in ("ann", "bob")]
    found = alpha(group(rows), 0)
    assert found["value"] is None
    assert found["why"].startswith("not enough data: every label is a tie")
    assert ceiling(group(rows), 0)["most"]["why"] == NO_OVERLAP
