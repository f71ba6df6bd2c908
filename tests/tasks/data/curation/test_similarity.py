from __future__ import annotations

from collections import Counter
from itertools import combinations
from math import isclose, log

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from plumbline.tasks.data.curation.shingles import shingle, words
from plumbline.tasks.data.curation.similarity import (
    inverse_document_frequency,
    larger_containment,
    local_document_frequency,
    weighted_jaccard,
)

TEXTS = st.lists(st.lists(st.sampled_from("abcdef"), min_size=0, max_size=6).map(" ".join), min_size=2, max_size=8)


def test_words():
    assert words("don't pay 3.50 - 12 + 7, ok? 東京 a-b x[i]") == [
        "don't", "pay", "3.50", "-", "12", "+", "7", "ok", "東", "京", "a", "b", "x", "[", "i", "]",
    ]  # fmt: skip


def test_counted_shingles_are_multisets():
    """a a b and a b b share one a and one b of two distinct words: 2 of 4 counted words, 2 of 2 plain ones."""
    for counted, expected in ((True, 2 / 4), (False, 1.0)):
        shingles = shingle(["a a b", "a b b"], 1, counted=counted)
        found = weighted_jaccard(shingles, np.ones(len(shingles.columns)), np.array([[0, 1]]))
        assert np.allclose(found, expected)


def test_decisive_sequences():
    """Numbers, operators and negations in order: 12 - 7 is not 7 - 12; a greeting decides nothing."""
    found = shingle(["what is 12 - 7", "please, what is 12 - 7", "what is 7 - 12", "i can", "i can't"], 2).decisive
    assert found[0] == found[1]
    assert len({found[0], found[2], found[3], found[4]}) == 4


def test_weighted_jaccard_by_hand():
    """Single words of "a b", "a c", "a b d": df a 3, b 2, c 1, d 1 and N 3, so the weights are
    a log 2, b log 2.5, c and d log 4. J(0, 1) = log 2 / (log 2 + log 2.5 + log 4) and
    J(0, 2) = (log 2 + log 2.5) / (log 2 + log 2.5 + log 4).
    """
    shingles = shingle(["a b", "a c", "a b d"], 1)
    found = weighted_jaccard(shingles, inverse_document_frequency(shingles), np.array([[0, 1], [0, 2]]))
    a, b, c = log(2), log(2.5), log(4)
    assert np.allclose(found, [a / (a + b + c), (a + b) / (a + b + c)])


@given(TEXTS)
def test_similarities_against_sets(texts):
    """Naive: dictionaries of padded bigrams and their document frequencies."""
    sets = [_bigrams(text) for text in texts]
    frequency = Counter(gram for grams in sets for gram in grams)
    weight = {gram: log(1 + len(texts) / count) for gram, count in frequency.items()}
    shingles = shingle(texts, 2)
    pairs = list(combinations(range(len(texts)), 2))
    weights = inverse_document_frequency(shingles)
    found = weighted_jaccard(shingles, weights, np.array(pairs))
    held = larger_containment(shingles, weights, np.array(pairs))

    def total(grams):
        return sum(weight[gram] for gram in grams)

    for (left, right), value, share in zip(pairs, found, held, strict=True):
        one, other = sets[left], sets[right]
        shared = total(one & other)
        assert isclose(value, shared / total(one | other) if one | other else 0.0, abs_tol=1e-9)
        expected = max((shared / total(side) for side in (one, other) if side), default=0.0)
        assert isclose(share, expected, abs_tol=1e-9)


@given(TEXTS, st.data())
def test_local_frequency_against_counting(texts, data):
    labels = np.array(data.draw(st.lists(st.integers(0, 2), min_size=len(texts), max_size=len(texts))))
    shingles = shingle(texts, 2)
    found = local_document_frequency(shingles, labels)
    held = [set(shingles.columns[shingles.offsets[i] : shingles.offsets[i + 1]].tolist()) for i in range(len(texts))]
    for row, column, count in zip(shingles.rows(), shingles.columns, found, strict=True):
        assert count == sum(column in held[i] for i in range(len(texts)) if labels[i] == labels[row])


def _bigrams(text: str) -> set[tuple[str, str]]:
    found = text.split()
    return set(zip(["<", *found], [*found, ">"], strict=True)) if found else set()
