"""The label leak: planted surfaces are found, noise is not, and clusters do not cross folds."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from plumbline.tasks.data.clinic.leak import leak
from plumbline.tasks.data.clinic.surface import NAMES, differences

WORDS = [f"word{n}" for n in range(100, 500)]


def texts(rng: Random, n: int, words: int = 12) -> list[str]:
    return [" ".join(rng.choices(WORDS, k=words)) for _ in range(n)]


def test_differences_by_hand() -> None:
    """Left has 3 characters and one word, right 7 and two; left shown first, then unknown, then second."""
    table = differences(["Abc"] * 3, ["x1, y2!"] * 3, [0, -1, 1])
    assert table.shape == (3, len(NAMES))
    row = dict(zip(NAMES, table[0], strict=True))
    assert row["characters"] == pytest.approx(np.log(4) - np.log(8))
    assert row["words"] == pytest.approx(np.log(2) - np.log(3))
    assert row["digits"] == pytest.approx(-np.log(3))
    assert row["commas"] == row["exclamation marks"] == pytest.approx(-np.log(2))
    assert row["share of capitals"] == pytest.approx(1 / 3)
    assert row["first word capital"] == 1
    assert table[:, -1].tolist() == [1, 0, -1]
    assert differences(["same"], ["same"], [-1]).tolist() == [[0] * len(NAMES)]


@pytest.mark.parametrize("wins", ["longer", "bullets", "first", "word"])
def test_a_planted_leak_is_found_and_named(wins: str) -> None:
    rng, n = Random(1), 400
    left, right = texts(rng, n), texts(rng, n)
    label = np.array([rng.randrange(2) for _ in range(n)])
    first = np.full(n, -1)
    for place, side in enumerate(label):
        two = [left, right]
        if wins == "longer":
            two[side][place] += " " + " ".join(rng.choices(WORDS, k=10))
        elif wins == "bullets":
            two[side][place] = "- " + two[side][place].replace(" ", "\n- ", 3)
        elif wins == "word":
            two[side][place] = two[side][place].rpartition(" ")[0] + " certain"  # as long as the words here
        else:
            first[place] = side
    found = leak(left, right, label, first, [f"c{k}" for k in range(n)], 0)
    assert found["accuracy"]["value"] > 0.95
    assert found["auc"] > 0.95
    names = {"longer": "words", "bullets": "list items", "first": "shown first", "word": "“certain”"}
    assert names[wins] in [row["feature"] for row in found["telling"][:4]]
    assert all(row["prefers"] == "more" for row in found["telling"] if row["feature"] == names[wins])


def test_labels_by_chance_are_told_by_chance() -> None:
    rng, n = Random(2), 600
    label = np.array([rng.randrange(2) for _ in range(n)])
    found = leak(texts(rng, n), texts(rng, n), label, np.full(n, -1), [f"c{k}" for k in range(n)], 0)
    assert found["accuracy"]["low"] < 0.5 < found["accuracy"]["high"]
    assert found["auc"] == pytest.approx(0.5, abs=0.07)


def test_what_a_cluster_repeats_is_not_known_in_another() -> None:
    """Twenty copies of one comparison a cluster: with copies on both sides of a fold all would be told."""
    rng = Random(3)
    left, right, label, clusters = [], [], [], []
    for cluster in range(40):
        one, two, side = *texts(rng, 2), rng.randrange(2)
        left += [one] * 20
        right += [two] * 20
        label += [side] * 20
        clusters += [f"c{cluster}"] * 20
    found = leak(left, right, np.array(label), np.full(800, -1), clusters, 0)
    assert found["accuracy"]["value"] < 0.75
    assert found["accuracy"]["high"] - found["accuracy"]["low"] > 0.2, "forty clusters, not 800 pairs"


def test_one_label_alone_is_no_leak() -> None:
    """Every left response is preferred, which says nothing of its surface: the classifier knows no left."""
    rng, n = Random(4), 300
    found = leak(texts(rng, n), texts(rng, n), np.zeros(n, dtype=int), np.full(n, -1), [f"c{k}" for k in range(n)], 0)
    assert found["accuracy"]["value"] == pytest.approx(0.5, abs=0.09)  # three standard errors


@pytest.mark.parametrize(("n", "groups"), [(0, 1), (49, 49), (80, 4)])
def test_too_little_data_says_so(n: int, groups: int) -> None:
    rng = Random(5)
    clusters = [f"c{k % groups}" for k in range(n)]
    found = leak(texts(rng, n), texts(rng, n), np.zeros(n, dtype=int), np.full(n, -1), clusters, 0)
    assert found["accuracy"]["value"] is None
    assert found["accuracy"]["why"].startswith("not enough data: expected 50 pairs in 5 clusters")
