"""MinHash signatures and their LSH buckets: which texts are worth comparing.

Signatures come from rensa (R-MinHash, seeded, one row a set); the buckets are found by sorting.
A candidate is no verdict: `similarity` decides.

Broder (1997), "On the resemblance and containment of documents"; banding after Leskovec, Rajaraman
and Ullman, "Mining of Massive Datasets", 3.4: a pair of Jaccard J meets in one of b bands of r rows
with probability 1 - (1 - J^r)^b.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from rensa import RMinHash

from plumbline.tasks.data.curation.shingles import I64, U64, mix

Signatures = npt.NDArray[np.uint32]
Pairs = npt.NDArray[np.int64]  # (p, 2), left < right, sorted, distinct


def signatures(hashes: U64, offsets: I64, length: int, seed: int) -> Signatures:
    """MinHash signatures (n, length) of n sets of 64-bit hashes given flat with row offsets (n + 1,)."""
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(
        np.ascontiguousarray(hashes), offsets.astype(np.uint64), length, seed
    )
    return np.array(matrix.to_rows(), dtype=np.uint32).reshape(len(offsets) - 1, length)


def band_keys(signature: Signatures, bands: int) -> U64:
    """One 64-bit key a band: (bands, n) from (n, bands x rows)."""
    texts, length = signature.shape
    cut = signature.reshape(texts, bands, length // bands).astype(np.uint64)
    keys = np.zeros((texts, bands), dtype=np.uint64)
    for row in range(cut.shape[2]):
        keys = mix(keys * np.uint64(31) + cut[:, :, row] + np.uint64(row + 1))
    return np.ascontiguousarray(keys.T)


def bucket_chains(keys: U64) -> Pairs:
    """Neighbours in each bucket: b - 1 pairs for a bucket of b texts, enough to connect it."""
    found = []
    for band in keys:
        order = np.argsort(band, kind="stable")
        same = np.flatnonzero(band[order[1:]] == band[order[:-1]])
        found.append(np.column_stack([order[same], order[same + 1]]))
    return distinct_pairs(np.concatenate(found)) if found else np.zeros((0, 2), dtype=np.int64)


def bucket_pairs(keys: U64, largest: int, window: int) -> tuple[Pairs, int]:
    """Pairs of texts that share a bucket, and how many buckets were too large to yield all of theirs.

    A bucket of at most `largest` texts yields all its pairs; in a larger one each text meets the next
    `window` in the order of the texts, so that a template with n fills costs n x window, not n^2.
    """
    found: list[Pairs] = []
    crowded = 0
    for band in keys:
        order = np.argsort(band, kind="stable")
        ordered = band[order]
        starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        sizes = np.diff(np.append(starts, len(ordered)))
        crowded += int((sizes > largest).sum())
        reach = np.repeat(np.where(sizes > largest, window, sizes), sizes)
        for step in range(1, int(reach.max(initial=0)) + 1):
            same = np.flatnonzero((ordered[step:] == ordered[:-step]) & (step <= reach[:-step]))
            if not len(same):
                break
            found.append(np.column_stack([order[same], order[same + step]]))
    return distinct_pairs(np.concatenate(found)) if found else np.zeros((0, 2), dtype=np.int64), crowded


def distinct_pairs(pairs: Pairs) -> Pairs:
    """Pairs ordered within and among themselves, each once."""
    if not len(pairs):
        return pairs.reshape(0, 2)
    low, high = pairs.min(axis=1), pairs.max(axis=1)
    span = int(high.max()) + 1
    keys = np.sort(low * span + high)  # np.unique hashes here, ten times slower
    keys = keys[np.concatenate([[True], keys[1:] != keys[:-1]])]
    return np.column_stack([keys // span, keys % span])


def estimated_jaccard(signature: Signatures, pairs: Pairs) -> npt.NDArray[np.float64]:
    """Share of equal signature values of each pair: an unbiased estimate of its Jaccard similarity."""
    return np.asarray((signature[pairs[:, 0]] == signature[pairs[:, 1]]).mean(axis=1), dtype=np.float64)
