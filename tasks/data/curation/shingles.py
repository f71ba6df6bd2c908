"""Texts as sets of word shingles, in arrays: the ground of every similarity here.

Words are hashed by content (BLAKE2b), so that shingles do not depend on the other texts or their order.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

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

    `columns[offsets[i]:offsets[i + 1]]` are text i's shingles as indices into `hashes`, which may hold more;
    `decisive[i]` is a hash of the sequence of its numbers, operators and negations.
    """

    offsets: I64  # (n + 1,)
    columns: I64  # (nnz,) sorted within a row
    hashes: U64  # (m,) sorted
    decisive: U64  # (n,)

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

    def take(self, rows: I64) -> Shingles:
        """The shingles of some of the texts."""
        columns, offsets = gather(self.columns, self.offsets, rows)
        return Shingles(offsets, columns, self.hashes, self.decisive[rows])


def words(text: str) -> list[str]:
    """The words of a text: letters, numbers (3.5 is one), single Han and kana characters, operators."""
    return _WORD.findall(text)


class Vocabulary(dict[str, int]):
    """Words by number, with the hash of each and whether it is decisive: a number, an operator or a negation."""

    def __init__(self) -> None:
        super().__init__()
        self.hashes: list[int] = []
        self.decisive: list[bool] = []

    def __missing__(self, word: str) -> int:
        number = self[word] = len(self)
        self.hashes.append(_hash_word(word))
        self.decisive.append(_is_decisive(word))
        return number


def shingle(texts: Sequence[str], size: int, *, counted: bool = False) -> Shingles:
    """The distinct shingles of `size` words of each text, its ends padded so that short texts have some too.

    `counted` tells the k-th occurrence of a shingle in a text from the first: sets that stand for multisets.
    """
    counts, windows, decisive = distinct_windows(texts, size, Vocabulary(), counted=counted)
    hashes, columns = np.unique(windows, return_inverse=True)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Shingles(offsets, columns.astype(np.int64), hashes, decisive)


def distinct_windows(
    texts: Sequence[str], size: int, vocabulary: Vocabulary, *, counted: bool = False
) -> tuple[I64, U64, U64]:
    """The number of shingles of each text, their hashes sorted within a text, and each text's decisive words."""
    flat, lengths, decisive = _tokenise(texts, vocabulary)
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
    return np.bincount(owners, minlength=len(texts)), windows, decisive


def gather(values: npt.NDArray[Any], offsets: I64, rows: I64) -> tuple[npt.NDArray[Any], I64]:
    """Some rows of compressed rows, and their offsets."""
    counts = np.diff(offsets)[rows]
    ends = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    place = np.arange(ends[-1]) + np.repeat(offsets[rows] - ends[:-1], counts)
    return values[place], ends


def repeated(values: U64) -> npt.NDArray[np.bool_]:
    """True for each value that occurs more than once."""
    order = np.argsort(values)
    same = np.flatnonzero(values[order[1:]] == values[order[:-1]])
    found = np.zeros(len(values), dtype=bool)
    found[order[same]] = found[order[same + 1]] = True
    return found


def windows_of(text: str, size: int) -> tuple[list[str], U64]:
    """Words of one text, and the hashes of all its windows in order: (words + size - 1,)."""
    flat, lengths, _ = _tokenise([text], Vocabulary())
    return words(text), _windows(flat, lengths, size)[0]


def mix(values: U64) -> U64:
    """Finaliser of SplitMix64: spreads every input bit over the 64 output bits."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _tokenise(texts: Sequence[str], vocabulary: Vocabulary) -> tuple[U64, I64, U64]:
    """The hashes of all words, the number of words of each text, and a hash of its decisive words, 0 without any."""
    numbers: list[int] = []
    lengths = np.zeros(len(texts), dtype=np.int64)
    known = vocabulary.__getitem__
    for place, text in enumerate(texts):
        found = words(text)
        lengths[place] = len(found)
        numbers.extend(map(known, found))
    tokens = np.array(numbers, dtype=np.int64)
    flat = np.array(vocabulary.hashes, dtype=np.uint64)[tokens]
    decides = np.array(vocabulary.decisive, dtype=bool)[tokens]
    return flat, lengths, _sequences(flat[decides], np.repeat(np.arange(len(texts)), lengths)[decides], len(texts))


def _sequences(hashes: U64, owners: I64, texts: int) -> U64:
    """A hash of each text's sequence of words, given the hashes of words and their texts in order."""
    counts = np.bincount(owners, minlength=texts)
    starts = np.cumsum(counts) - counts
    place = (np.arange(len(owners)) - starts[owners] + 1).astype(np.uint64)
    found = np.zeros(texts, dtype=np.uint64)
    some = np.flatnonzero(counts)
    if len(some):
        found[some] = np.add.reduceat(mix(hashes ^ mix(place)), starts[some])
    return found


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
