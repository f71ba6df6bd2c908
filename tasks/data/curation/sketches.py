"""What is known of each text by itself, kept while curation repeats: its shingles, its MinHash bands, its numbers.

A text that shares no bucket with another has no near duplicate among these texts, nor among fewer of them: only the
texts that do (`met`) are compared, and the shingles of the others merely count for how rare a shingle is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from plumbline.tasks.data.curation.minhash import band_keys, signatures
from plumbline.tasks.data.curation.shingles import I64, U64, Shingles, Vocabulary, distinct_windows, gather, repeated
from plumbline.tasks.params.curation import MatchingParams

_BLOCK = 20_000  # texts whose words are held at once


@dataclass(frozen=True)
class Sketches:
    """Distinct texts, known by number, with their shingles in compressed rows: `hashes` are sorted within a row."""

    texts: Sequence[str]
    offsets: I64  # (n + 1,)
    hashes: U64  # (nnz,)
    decisive: U64  # (n,)
    keys: U64  # (bands, n)
    met: npt.NDArray[np.bool_]  # (n,)

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The number of each text."""
        return {text: number for number, text in enumerate(self.texts)}

    def row(self, number: int) -> U64:
        """The shingles of one text."""
        return self.hashes[self.offsets[number] : self.offsets[number + 1]]

    def shingles(self, members: I64) -> Shingles:
        """The shingles of some of the texts in `met`."""
        return self._met_shingles.take(np.searchsorted(np.flatnonzero(self.met), members))

    def frequency(self, alive: I64) -> I64:
        """How many of the texts in `alive` hold each of `shingles(...).hashes`."""
        gone = np.ones(len(self.texts), dtype=bool)
        gone[alive] = False
        lost, _ = gather(self.hashes, self.offsets, np.flatnonzero(gone))
        return self._frequency - _counts(self._table, np.sort(lost))

    @cached_property
    def _table(self) -> U64:
        return np.unique(gather(self.hashes, self.offsets, np.flatnonzero(self.met))[0])

    @cached_property
    def _met_shingles(self) -> Shingles:
        met = np.flatnonzero(self.met)
        found, offsets = gather(self.hashes, self.offsets, met)
        columns = np.searchsorted(self._table, found).astype(np.int64)
        return Shingles(offsets, columns, self._table, self.decisive[met])

    @cached_property
    def _frequency(self) -> I64:
        total = np.zeros(len(self._table), dtype=np.int64)
        ends = [*range(0, len(self.texts), 10 * _BLOCK), len(self.texts)]
        for start, end in zip(self.offsets[ends][:-1], self.offsets[ends][1:], strict=True):
            total += _counts(self._table, np.sort(self.hashes[start:end]))
        return total


def sketch(texts: Sequence[str], params: MatchingParams, seed: int) -> Sketches:
    """The sketches of distinct texts."""
    vocabulary = Vocabulary()
    parts = [_sketch(texts[place : place + _BLOCK], vocabulary, params, seed) for place in range(0, len(texts), _BLOCK)]
    if not parts:
        parts = [_sketch([], vocabulary, params, seed)]
    counts, hashes, decisive, keys = zip(*parts, strict=True)
    sizes = np.concatenate(counts)
    bands = np.concatenate(keys, axis=1)
    empty = np.flatnonzero(sizes == 0)
    bands[:, empty] = empty.astype(np.uint64)  # empty sets share a signature, not a content
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return Sketches(texts, offsets, np.concatenate(hashes), np.concatenate(decisive), bands, _met(bands))


def _sketch(
    texts: Sequence[str], vocabulary: Vocabulary, params: MatchingParams, seed: int
) -> tuple[I64, U64, U64, U64]:
    """Number of shingles, shingles, decisive words and band keys of each text."""
    counts, hashes, decisive = distinct_windows(texts, params.shingle_words, vocabulary)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    length = params.bands * params.rows if params.near else params.bands
    signature = signatures(hashes, offsets, length, seed % 2**32)
    return counts, hashes, decisive, band_keys(signature, params.bands)


def _met(keys: U64) -> npt.NDArray[np.bool_]:
    """True for each text that shares a bucket with another in any band."""
    met = np.zeros(keys.shape[1], dtype=bool)
    for band in keys:
        met |= repeated(band)
    return met


def _counts(table: U64, ordered: U64) -> I64:
    """How often each value of a sorted table occurs in sorted values."""
    left, right = (np.searchsorted(ordered, table, side=side) for side in ("left", "right"))
    return np.asarray(right - left, dtype=np.int64)
