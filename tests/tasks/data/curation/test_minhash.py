from __future__ import annotations

from itertools import combinations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from plumbline.tasks.data.curation.minhash import band_keys, bucket_chains, bucket_pairs, estimated_jaccard, signatures
from plumbline.tasks.data.curation.near_duplicates import components


def test_estimate_of_known_overlap():
    """80 of 120 hashes shared: J = 2/3. With 1024 values the standard error is sqrt(2/9/1024) = 0.015."""
    hashes = np.random.default_rng(0).integers(0, 2**63, 120, dtype=np.uint64)
    flat = np.concatenate([hashes[:100], hashes[:80], hashes[100:]])
    signature = signatures(flat, np.array([0, 100, 200]), 1024, seed=3)
    (found,) = estimated_jaccard(signature, np.array([[0, 1]]))
    assert abs(found - 2 / 3) < 0.06


def test_signatures_depend_on_the_seed_and_on_nothing_else():
    hashes = np.arange(1, 50, dtype=np.uint64)
    offsets = np.array([0, 20, 49])
    first = signatures(hashes, offsets, 64, seed=1)
    assert np.array_equal(first, signatures(hashes, offsets, 64, seed=1))
    assert not np.array_equal(first, signatures(hashes, offsets, 64, seed=2))
    assert np.array_equal(first[1:], signatures(hashes[20:], np.array([0, 29]), 64, seed=1))


@given(st.lists(st.lists(st.integers(0, 3), min_size=8, max_size=8), min_size=1, max_size=12))
def test_buckets_against_all_pairs(rows):
    """Two bands of four values: a pair is a candidate exactly if one band is equal."""
    signature = np.array(rows, dtype=np.uint32)
    naive = [
        (left, right)
        for left, right in combinations(range(len(rows)), 2)
        if rows[left][:4] == rows[right][:4] or rows[left][4:] == rows[right][4:]
    ]
    keys = band_keys(signature, 2)
    pairs, crowded = bucket_pairs(keys, largest=12, window=1)
    assert [tuple(pair) for pair in pairs.tolist()] == naive
    assert crowded == 0
    by_chain = components(len(rows), bucket_chains(keys))
    assert np.array_equal(by_chain, components(len(rows), np.array(naive, dtype=np.int64).reshape(-1, 2)))


def test_a_crowded_bucket_yields_a_window():
    """Five texts in one bucket, window 2: 4 + 3 pairs at distances 1 and 2."""
    keys = np.zeros((1, 5), dtype=np.uint64)
    pairs, crowded = bucket_pairs(keys, largest=4, window=2)
    assert crowded == 1
    assert pairs.tolist() == [[0, 1], [0, 2], [1, 2], [1, 3], [2, 3], [2, 4], [3, 4]]
