from __future__ import annotations

from collections import Counter
from itertools import combinations
from math import log
from random import Random

import numpy as np
import pytest

from plumbline.tasks.data.curation.near_duplicates import find_near_duplicates
from plumbline.tasks.data.curation.templates import template_table
from plumbline.tasks.params.curation import MatchingParams

PARAMS = MatchingParams()


def _word(rng: Random) -> str:
    return "".join(rng.choice("bcdfghklmnprstvz") + rng.choice("aeiou") for _ in range(rng.randint(2, 4)))


def _fills(rng: Random, frame_words: int, blanks: int, blank_words: int, fills: int) -> list[list[str]]:
    frame = [_word(rng) for _ in range(frame_words)]
    places = sorted(rng.sample(range(2, frame_words - 1), blanks), reverse=True)
    texts = []
    for _ in range(fills):
        text = list(frame)
        for place in places:
            text[place:place] = [_word(rng) for _ in range(blank_words)]
        texts.append(text)
    return texts


def _index_pairs(texts: list[str], planted: list[tuple[str, str]]) -> set[tuple[int, int]]:
    number = {text: place for place, text in enumerate(texts)}
    return {tuple(sorted((number[left], number[right]))) for left, right in planted}  # type: ignore[misc]


@pytest.mark.parametrize(
    ("frame_words", "blanks", "blank_words", "fills"),
    [(48, 4, 3, 60), (20, 1, 1, 60), (58, 1, 1, 100), (12, 2, 1, 40)],
    ids=["12 of 60 words differ", "1 of 21", "1 of 59, crowded buckets", "2 of 14"],
)
def test_the_template_trap(frame_words, blanks, blank_words, fills):
    """20 templates x many fills: plain Jaccard of fills reaches 0.95, yet none is another's duplicate.

    In 40 of them one word of the frame is replaced, far from the blanks: those copies, and only those, are
    verified. (In the frame of 12 words the edit costs 4 of 15 shingles and the threshold misses none.)
    """
    rng = Random(7)
    templates = [_fills(rng, frame_words, blanks, blank_words, fills) for _ in range(20)]
    legit = {" ".join(text) for texts in templates for text in texts}
    planted = []
    for texts in templates:
        for text in texts[:2]:
            copy = list(text)
            copy[0] = _word(rng)
            planted.append((" ".join(text), " ".join(copy)))
    texts = sorted(legit | {copy for _, copy in planted})
    near = find_near_duplicates(texts, PARAMS, seed=1)
    assert {tuple(pair) for pair in near.pairs.tolist()} == _index_pairs(texts, planted)
    table = template_table(near, PARAMS)
    assert len(table) == 20
    assert sum(row["verified_pairs"] for row in table) == 40
    assert all(row["candidate_pairs"] > row["verified_pairs"] and "…" in row["template"] for row in table)
    assert all(row["groups"] == row["texts"] - 2 for row in table)


def test_few_values_in_many_blanks():
    """Three blanks of twelve values: fills repeat words, swap them or differ in one, and none is a duplicate."""
    rng = Random(11)
    values = [_word(rng) for _ in range(12)]
    texts = set()
    for _ in range(10):
        frame = [_word(rng) for _ in range(20)]
        places = sorted(rng.sample(range(1, 20), 3), reverse=True)
        for _ in range(150):
            text = list(frame)
            for place in places:
                text.insert(place, rng.choice(values))
            texts.add(" ".join(text))
    assert len(find_near_duplicates(sorted(texts), PARAMS, 1).pairs) == 0


def test_an_edit_beside_a_blank_is_found():
    """ "thanks" ends a text whose last word fills a blank: it costs a shingle of the content, no word."""
    cities = ["oslo", "rome", "lima", "cairo", "delhi", "quito", "paris", "tunis", "dakar"]
    names = ["ann", "bob", "cy", "dan", "eve", "fay", "gil", "hal", "ivy"]
    asks = "asks when the big green van with the lamp gets to"
    texts = [f"{name} {asks} {city}" for name, city in zip(names, cities, strict=True)]
    texts = sorted([*texts, f"{texts[0]} thanks"])
    (pair,) = find_near_duplicates(texts, PARAMS, 0).pairs.tolist()
    assert [texts[number].removesuffix(" thanks") for number in pair] == [texts[0], texts[0]]


def test_the_frame_is_shown():
    cities = ["oslo", "rome", "lima", "cairo", "delhi", "quito", "paris", "tunis", "dakar"]
    near = find_near_duplicates([f"how many people live in {city} in the winter" for city in cities], PARAMS, 0)
    (row,) = template_table(near, PARAMS)
    assert row["template"] == "how many people live in … in the winter"
    assert (row["texts"], row["verified_pairs"], row["groups"]) == (9, 0, 9)


def test_planted_near_duplicates_in_free_text():
    """Texts of 40 random words, one word replaced: J = 38 / 43 of bigrams (0.88 before weights). All 150 are found."""
    rng = Random(3)
    planted, texts = [], set()
    for _ in range(150):
        text = [_word(rng) for _ in range(40)]
        copy = list(text)
        copy[rng.randrange(40)] = _word(rng)
        planted.append((" ".join(text), " ".join(copy)))
        texts |= set(planted[-1])
    ordered = sorted(texts)
    near = find_near_duplicates(ordered, PARAMS, seed=5)
    assert {tuple(pair) for pair in near.pairs.tolist()} == _index_pairs(ordered, planted)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (
            "my parcel with the blue kettle has 12 scratches on it",
            "my parcel with the blue kettle has 13 scratches on it",
        ),
        ("please tell me when the parcel did arrive here", "please tell me when the parcel did not arrive here"),
        ("what is the value of 12 - 7 in this table", "what is the value of 12 + 7 in this table"),
        ("!!!", "???"),
    ],
)
def test_numbers_operators_and_negations_decide(left, right):
    near = find_near_duplicates(sorted([left, right]), MatchingParams(threshold=0.31), 0)
    assert len(near.pairs) == 0


@pytest.mark.parametrize("seed", range(4))
def test_groups_against_all_pairs(seed):
    """Small random sets of unlike families (below the template size): components of naive weighted Jaccard."""
    rng = Random(seed)
    texts: set[str] = set()
    for _ in range(12):
        text = [_word(rng) for _ in range(rng.randint(8, 25))]
        texts.add(" ".join(text))
        for _ in range(rng.randint(0, 3)):
            copy = list(text)
            for _ in range(rng.randint(1, 3)):
                copy[rng.randrange(len(copy))] = _word(rng)
            texts.add(" ".join(copy))
    ordered = sorted(texts)
    near = find_near_duplicates(ordered, PARAMS, seed)
    naive = _naive_pairs(ordered, PARAMS.threshold)
    assert {tuple(pair) for pair in near.pairs.tolist()} == naive
    assert _partition(near.groups.tolist()) == _partition(_naive_groups(len(ordered), naive))


def test_same_seed_same_result_and_off_is_off():
    texts = sorted({" ".join(text) for text in _fills(Random(1), 20, 2, 2, 50)})
    first, second = (find_near_duplicates(texts, PARAMS, 9) for _ in range(2))
    assert np.array_equal(first.candidates, second.candidates)
    assert np.array_equal(first.groups, second.groups)
    assert len(find_near_duplicates(texts, MatchingParams(near=False), 9).candidates) == 0


@pytest.mark.parametrize("texts", [[], [""], ["", "!", "a"]])
def test_hardly_any_text(texts):
    near = find_near_duplicates(texts, PARAMS, 0)
    assert near.groups.tolist() == list(range(len(texts)))


def _naive_pairs(texts: list[str], threshold: float) -> set[tuple[int, int]]:
    sets = [set(zip(["<", *text.split()], [*text.split(), ">"], strict=True)) for text in texts]
    frequency = Counter(gram for grams in sets for gram in grams)

    def total(grams):
        return sum(log(1 + len(texts) / frequency[gram]) for gram in grams)

    return {
        (left, right)
        for left, right in combinations(range(len(texts)), 2)
        if total(sets[left] & sets[right]) / total(sets[left] | sets[right]) >= threshold
    }


def _naive_groups(size: int, pairs: set[tuple[int, int]]) -> list[int]:
    labels = list(range(size))
    for _ in range(size):
        for left, right in pairs:
            labels[left] = labels[right] = min(labels[left], labels[right])
    return labels


def _partition(labels: list[int]) -> set[frozenset[int]]:
    return {frozenset(i for i, label in enumerate(labels) if label == one) for one in labels}
