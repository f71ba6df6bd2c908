"""Exact similarity of candidate pairs: weighted Jaccard and containment of their shingles.

With weights w, J(A, B) = w(A and B) / w(A or B), and A is contained in B by w(A and B) / w(A).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from plumbline.tasks.data.curation.minhash import Pairs
from plumbline.tasks.data.curation.shingles import I64, Shingles

F64 = npt.NDArray[np.float64]
_CHUNK = 20_000


def inverse_document_frequency(shingles: Shingles, frequency: I64 | None = None, texts: int | None = None) -> F64:
    """Weight of each entry, log(1 + N / df) nats over N texts: (nnz,). Never 0, even where every text has it.

    `frequency` is df of each of `shingles.hashes` and `texts` is N, where they are those of a larger corpus.
    """
    if frequency is None:
        frequency = np.bincount(shingles.columns, minlength=len(shingles.hashes))
    ratio = (shingles.texts if texts is None else texts) / np.maximum(frequency, 1)
    return np.asarray(np.log1p(ratio)[shingles.columns], dtype=np.float64)


def local_document_frequency(shingles: Shingles, labels: I64) -> I64:
    """For each entry, how many texts of the same label (neighbourhood) hold the shingle: (nnz,)."""
    keys = labels[shingles.rows()] * max(len(shingles.hashes), 1) + shingles.columns
    _, place, counts = np.unique(keys, return_inverse=True, return_counts=True)
    return np.asarray(counts[place], dtype=np.int64)


def weighted_jaccard(shingles: Shingles, weights: F64, pairs: Pairs) -> F64:
    """J of each pair, with a weight for each entry that depends on its shingle alone: (p,)."""
    total = np.asarray(_matrix(shingles, weights).sum(axis=1)).ravel()
    shared = _shared(shingles, weights, pairs)
    union = total[pairs[:, 0]] + total[pairs[:, 1]] - shared
    return _ratio(shared, np.asarray(union, dtype=np.float64))


def larger_containment(shingles: Shingles, weights: F64, pairs: Pairs) -> F64:
    """The share of one text that the other holds, the larger of both sides: (p,). A text without weight counts 0."""
    total = np.asarray(_matrix(shingles, weights).sum(axis=1)).ravel()
    shared = _shared(shingles, weights, pairs)
    return np.asarray(np.maximum(_ratio(shared, total[pairs[:, 0]]), _ratio(shared, total[pairs[:, 1]])))


def _ratio(part: F64, whole: F64) -> F64:
    return np.asarray(np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0), dtype=np.float64)


def _matrix(shingles: Shingles, values: F64) -> csr_matrix:
    shape = (shingles.texts, max(len(shingles.hashes), 1))
    return csr_matrix((values, shingles.columns, shingles.offsets), shape=shape)


def _shared(shingles: Shingles, weights: F64, pairs: Pairs) -> F64:
    """Weight of the shingles that both texts of a pair hold."""
    weighted, present = _matrix(shingles, weights), _matrix(shingles, np.ones(len(weights)))
    shared = np.zeros(len(pairs))
    for start in range(0, len(pairs), _CHUNK):
        part = pairs[start : start + _CHUNK]
        product = weighted[part[:, 0]].multiply(present[part[:, 1]])
        shared[start : start + _CHUNK] = np.asarray(product.sum(axis=1)).ravel()
    return shared
