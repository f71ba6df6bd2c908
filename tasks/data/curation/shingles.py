"""Texts as sets of word shingles, in arrays: the ground of every similarity here.

Words are hashed by content (BLAKE2b), so that shingles do not depend on the other texts or their order.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

# Han characters and kana stand alone, since those scripts write no spaces between words. Operators
# are words: "12 - 7" is another question than "12 + 7", and "a[i]" is not "a(i)".
_WORD = re.compile(
    r"\d+(?:[.,]\d+)*|[\u3040-\u30ff\u3400-\u9fff]"
    r"|[^\W\d_\u3040-\u30ff\u3400-\u9fff]+(?:['\u2019][^\W\d_]+)*|[_+*/=<>%^&|~$€£#@\\{}\[\]]|-(?=\s*\d)"
)
_NEGATIONS = frozenset({"no", "not", "never", "none", "nor", "without", "cannot"})
_PAD = 0x9E3779B97F4A7C15


@dataclass(frozen=True, slots=True)
class Shingles:
    """Distinct shingles of n texts, in compressed rows.

    `columns[offsets[i]:offsets[i + 1]]` are text i's shingles as indices into `hashes`;
    `decisive[i]` numbers the sequence of its numbers, operators and negations.
    """

    offsets: I64  # (n + 1,)
    columns: I64  # (nnz,) sorted within a row
    hashes: U64  # (m,) sorted
    decisive: I64  # (n,)

    @property
    def texts(self) -> int:
        """The number of texts."""
        return len(self.offsets) - 1

    def rows(self) -> I64:
        """The text of each entry: (nnz,)."""
        return np.repeat(np.arange(self.texts), np.diff(self.offsets))

    def row_hashes(self) -> U64:
        """The hash of each entry: (nnz,)."""
        return self.hashes[self.columns]


def words(text: str) -> list[str]:
    """The words of a text: letters, numbers (3.5 is one), single Han and kana characters, operators."""
    return _WORD.findall(text)


def shingle(texts: Sequence[str], size: int, *, counted: bool = False) -> Shingles:
    """The distinct shingles of `size` words of each text, its ends padded so that short texts have some too.

    `counted` tells the k-th occurrence of a shingle in a text from the first: sets that stand for multisets.
    """
    flat, lengths, decisive = _tokenise(texts)
    windows, owners = _windows(flat, lengths, size)
    order = np.lexsort((windows, owners))
    windows, owners = windows[order], owners[order]
    fresh = np.ones(len(windows), dtype=bool)
    fresh[1:] = (windows[1:] != windows[:-1]) | (owners[1:] != owners[:-1])
    if counted:
        place = np.arange(len(windows))
        occurrence = place - np.maximum.accumulate(np.where(fresh, place, 0))
        windows = mix(windows + occurrence.astype(np.uint64))
        order = np.lexsort((windows, owners))
        windows, owners = windows[order], owners[order]
    else:
        windows, owners = windows[fresh], owners[fresh]
    hashes, columns = np.unique(windows, return_inverse=True)
    counts = np.bincount(owners, minlength=len(texts))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Shingles(offsets, columns.astype(np.int64), hashes, decisive)


def windows_of(text: str, size: int) -> tuple[list[str], U64]:
    """Words of one text, and the hashes of all its windows in order: (words + size - 1,)."""
    flat, lengths, _ = _tokenise([text])
    return words(text), _windows(flat, lengths, size)[0]


def mix(values: U64) -> U64:
    """Finaliser of SplitMix64: spreads every input bit over the 64 output bits."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _tokenise(texts: Sequence[str]) -> tuple[U64, I64, I64]:
    vocabulary: dict[str, int] = {}
    tokens: list[int] = []
    lengths = np.zeros(len(texts), dtype=np.int64)
    sequences: dict[tuple[str, ...], int] = {}
    decisive = np.zeros(len(texts), dtype=np.int64)
    deciding: dict[str, bool] = {}
    for place, text in enumerate(texts):
        found = words(text)
        lengths[place] = len(found)
        tokens.extend([vocabulary.setdefault(word, len(vocabulary)) for word in found])
        for word in found:
            if word not in deciding:
                deciding[word] = _is_decisive(word)
        signature = tuple(word for word in found if deciding[word])
        decisive[place] = sequences.setdefault(signature, len(sequences))
    table = np.array([_hash_word(word) for word in vocabulary], dtype=np.uint64)
    flat = table[np.array(tokens, dtype=np.int64)] if tokens else np.zeros(0, dtype=np.uint64)
    return flat, lengths, decisive


def _is_decisive(word: str) -> bool:
    if word[0].isalpha():
        return word in _NEGATIONS or word.endswith(("n't", "n\u2019t"))
    return True


def _hash_word(word: str) -> int:
    return int.from_bytes(blake2b(word.encode(), digest_size=8).digest(), "little")


def _windows(flat: U64, lengths: I64, size: int) -> tuple[U64, I64]:
    """Hashes of all windows of `size` words in each padded text, and the text of each window."""
    pad = size - 1
    padded = np.where(lengths > 0, lengths + 2 * pad, 0)
    owners = np.repeat(np.arange(len(lengths)), padded)
    starts = np.cumsum(padded) - padded
    inside = np.arange(len(owners)) - starts[owners]
    body = (inside >= pad) & (inside < pad + lengths[owners])
    stream = np.full(len(owners), _PAD, dtype=np.uint64)
    stream[body] = flat
    first = np.flatnonzero(inside < (padded - pad)[owners])
    value = np.zeros(len(first), dtype=np.uint64)
    for step in range(size):
        value = mix(value * np.uint64(31) + stream[first + step] + np.uint64(step + 1))
    return value, owners[first]
