"""Steps 1 and 2 of curation, and columns of what the others compare: a few numbers for each pair in place of its texts.

Texts are compared by 64-bit hashes of their canonical forms. Pairs that hashes take for equal are looked at with their
texts. Naive equivalent: `clean_leaks`, `apply_limits` and `contents` over items.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from plumbline.data_contracts.records import PreferencePair, Quarantined
from plumbline.tasks.data.curation.leak_words import could_leak
from plumbline.tasks.data.curation.leakage import clean_pair
from plumbline.tasks.data.curation.limits import check_pair, sizes_of, within
from plumbline.tasks.data.curation.pair_source import PairSource, Texts, texts_of
from plumbline.tasks.data.curation.pair_texts import canonical_pair, canonical_turns, joined_turns
from plumbline.tasks.data.curation.shingles import I64, U64
from plumbline.tasks.params.curation import CurationParams

_BYTES = 8  # of a hash
_COLUMNS = 3  # request, chosen, rejected


@dataclass(frozen=True, slots=True)
class Opening:
    """The beginning of a conversation: the pair's row, a hash of the turns, and if they end with the first answer."""

    row: int
    key: int
    answered: bool


@dataclass(frozen=True, slots=True)
class PairColumns:
    """The n pairs that passed steps 1 and 2, in the order of the input, and the verdicts on the others."""

    place: I64  # (n,) index in the input
    prompt: I64  # (n,) index in `prompts`
    prompts: list[str]  # distinct canonical prompts, sorted
    request: U64  # (n,) hash of the prompt with its turns
    chosen: U64  # (n,)
    rejected: U64  # (n,)
    sizes: I64  # (n, 3) lengths of prompt, chosen and rejected, in the unit of the limits
    openings: list[Opening]
    changed: dict[int, tuple[PreferencePair, tuple[str, ...]]]  # row -> the pair without its leaks, and the cuts
    quarantined: list[Quarantined]


def read_columns(source: PairSource, params: CurationParams) -> PairColumns:
    """Read every pair once: leaked labels, length limits, and the columns of those that stay."""
    reading = _Reading(source, params)
    for place, texts in enumerate(source.texts()):
        reading.add(place, texts)
    return reading.columns()


class _Reading:
    def __init__(self, source: PairSource, params: CurationParams) -> None:
        self._source, self._params = source, params
        self._places = array("q")
        self._numbers: dict[str, int] = {}  # of distinct prompts, in the order read
        self._prompts = array("q")
        self._keys = bytearray()
        self._sizes = array("q")
        self._openings: list[Opening] = []
        self._changed: dict[int, tuple[PreferencePair, tuple[str, ...]]] = {}
        self._leaked: list[Quarantined] = []
        self._beyond: list[Quarantined] = []

    def add(self, place: int, texts: Texts) -> None:
        # 1. leaked labels
        found = self._without_leaks(place, texts) if self._params.clean_leaks else texts
        if found is None:
            return
        # 2. length limits
        row, limits = len(self._places), self._params.limits
        sizes = sizes_of(found, limits.unit)
        if not within(sizes, limits):
            pair, _ = self._changed.pop(row, (None, ()))
            verdict = check_pair(self._source.record(place) if pair is None else pair, limits)
            assert verdict is not None, "a pair beyond the limits has a verdict"
            self._beyond.append(verdict)
            return
        self._places.append(place)
        self._sizes.extend(sizes)
        self._compare(row, found)

    def _without_leaks(self, place: int, texts: Texts) -> Texts | None:
        """The texts without leaked labels; None if the pair is set aside."""
        turns, chosen, rejected = texts
        if not could_leak("\n".join((chosen, rejected, *(said for _, said in turns)))):
            return texts
        found = clean_pair(self._source.record(place))
        if isinstance(found, Quarantined):
            self._leaked.append(found)
            return None
        pair, cuts = found
        if not cuts:
            return texts
        self._changed[len(self._places)] = found
        return texts_of(pair)

    def _compare(self, row: int, texts: Texts) -> None:
        matching = self._params.matching
        turns = canonical_turns(texts[0], matching)
        prompt, request = joined_turns(turns, matching)
        chosen, rejected = canonical_pair(texts[1], texts[2], matching)
        self._prompts.append(self._numbers.setdefault(prompt, len(self._numbers)))
        self._keys += _hash(request) + _hash(chosen) + _hash(rejected)
        if len(turns) > 1:
            answer = next((place for place, (role, _) in enumerate(turns) if role == "assistant"), len(turns))
            for end in range(1, len(turns)):
                key = int.from_bytes(_hash(joined_turns(turns[:end], matching)[1]), "little")
                self._openings.append(Opening(row, key, end == answer + 1))

    def columns(self) -> PairColumns:
        keys = np.frombuffer(bytes(self._keys), dtype="<u8").astype(np.uint64).reshape(-1, _COLUMNS)
        prompts = sorted(self._numbers)
        ranks = np.empty(len(prompts), dtype=np.int64)
        ranks[[self._numbers[text] for text in prompts]] = np.arange(len(prompts))
        return PairColumns(
            _whole(self._places),
            ranks[_whole(self._prompts)],
            prompts,
            *(np.ascontiguousarray(keys[:, place]) for place in range(_COLUMNS)),
            _whole(self._sizes).reshape(-1, _COLUMNS),
            self._openings,
            self._changed,
            [*self._leaked, *self._beyond],
        )


def _hash(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=_BYTES).digest()


def _whole(values: array[int]) -> I64:
    return np.array(values, dtype=np.int64)
