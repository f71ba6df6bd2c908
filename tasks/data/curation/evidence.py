"""Evidence in bits, for and against, that one of two pairs is a copy of the other with an edit.

For a copy speak the words that the responses share. A shingle counts log2(1 + N / df) bits over the N responses of
the corpus, at most 4, and at most 1 where the prompt holds it too. A response that belongs to k groups of prompts out
of n counts at most log2(n / k) bits: a stock answer proves nothing. A short answer ("Yes.") is worth a few bits in any
case. Against a copy speak the edits of prompt and responses (`wording`), and 20 bits of prior.

Some evidence is final. The words that differ are what people vary in this corpus where

- they stand in a place of the prompt in which other words turn the preference between the same two responses;
- three or more texts stand in the same place of one prompt, or of one instruction with whatever text;
- both instructions occur with other texts as well;
- the same words stand for one another in several places of near prompts;
- a word that differs in the prompts differs in the responses, too.

The first four do not hold where one of the two prompts has many more pairs than the other: nobody varies a thing once.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import inf, log2

import numpy as np

from plumbline.tasks.data.curation.pair_texts import PairContent, Pool, Pools
from plumbline.tasks.data.curation.shingles import U64
from plumbline.tasks.data.curation.similarity import F64
from plumbline.tasks.data.curation.verdicts import Item
from plumbline.tasks.data.curation.wording import (
    Edit,
    Request,
    Words,
    asked,
    common_ends,
    instructions,
    request_edits,
    request_of,
    response_edits,
)

PRIOR = 20.0
"""Bits that near prompts need before anything that differs: most near prompts in one corpus are several requests."""

Asked = tuple[tuple[str, Words], ...]
Slot = tuple[Words, Words]

_SHINGLE_BITS = 4.0
_PROMPT_BITS = 1.0
_FEWEST_TEXTS = 64  # in a corpus of fewer, document frequency says little about how rare a word is
_SLOT_TEXTS = 3
_CONTEXTS = 2
_MANY_TIMES = 8


@dataclass(frozen=True, slots=True)
class EditJudgement:
    """The verdict on two pairs: copy or not, the bits for it and needed for it, and the reason in words."""

    copy: bool
    have: float
    need: float
    reason: str


@dataclass(frozen=True, slots=True)
class Spread:
    """In how many groups of near prompts each response occurs, and how many groups there are."""

    responses: Mapping[str, int]
    groups: int


@dataclass(frozen=True, slots=True)
class _Side:
    """One pair as it is compared: its texts and what its prompt asks for."""

    content: PairContent
    request: Request
    asked: Asked
    group: int


@dataclass(frozen=True, slots=True)
class _Compared:
    left: _Side
    right: _Side
    prompt: list[Edit] | None
    responses: tuple[list[Edit], list[Edit]]


class EditEvidence:
    """The evidence of a corpus on its near pairs. Deterministic, and independent of the order of the pairs."""

    def __init__(
        self,
        items: Sequence[Item],
        contents: Sequence[PairContent],
        pools: Pools,
        places: Sequence[int],
        spread: Spread | None = None,
    ) -> None:
        """`places` are the pairs that have a rival; the others count for how common a response is.

        `spread`: in how many groups of near prompts a response occurs, where these are not all pairs.
        """
        self._pools = pools
        groups = [pools.prompts.group(content.prompt) for content in contents]
        self._sides = {
            place: _Side(contents[place], request, asked(request), groups[place])
            for place in places
            for request in (request_of(items[place].pair.prompt),)
        }
        self._by_group: dict[int, list[tuple[Item, PairContent]]] = defaultdict(list)
        for item, content, group in zip(items, contents, groups, strict=True):
            self._by_group[group].append((item, content))
        self._spread = spread_of(contents, groups) if spread is None else spread
        self._contexts = _contexts(self._sides.values())
        self._slots: dict[Slot, set[Words]] = defaultdict(set)
        self._swaps: dict[tuple[int, frozenset[Words]], set[Slot]] = defaultdict(set)
        self._turning: dict[int, set[Slot]] = {}
        self._asking = Counter(content.request() for content in contents)
        self._instructed = Counter(
            (kind, words) for side in self._sides.values() for kind, words in instructions(side.request).items()
        )

    def asked(self, place: int) -> Asked:
        """The request in the prompt of a pair, in any case, spacing, punctuation or courtesy."""
        return self._sides[place].asked

    def most(self, place: int) -> float:
        """The most bits that the responses of a pair could count."""
        content = self._sides[place].content
        return sum(self._shared(text, text, content) for text in (content.chosen, content.rejected))

    def note(self, left: int, right: int) -> None:
        """Enter two near pairs before any is judged: what stands in one place of one prompt or instruction."""
        one, other = self._sides[left], self._sides[right]
        self._enter(_flat(one.asked), _flat(other.asked))
        slot, texts = _slot(_flat(one.asked), _flat(other.asked))
        self._swaps[one.group, frozenset(texts)].add(slot)
        ours, theirs = instructions(one.request), instructions(other.request)
        for kind in ours.keys() & theirs.keys():
            if ours[kind] != theirs[kind]:
                self._enter((f"{kind}:", *ours[kind]), (f"{kind}:", *theirs[kind]))

    def _enter(self, left: Words, right: Words) -> None:
        slot, texts = _slot(left, right)
        if sum(map(len, slot)) > max(map(len, texts)):  # a frame of fewer words is none
            self._slots[slot].update(texts)

    def judge(self, left: int, right: int) -> EditJudgement:
        """Judge two pairs, alike in prompt and responses: one pair and its copy, or two."""
        one, other = self._sides[left], self._sides[right]
        compared = _Compared(
            one,
            other,
            request_edits(one.request, other.request),
            (
                response_edits(one.content.chosen, other.content.chosen),
                response_edits(one.content.rejected, other.content.rejected),
            ),
        )
        have, need = self._weigh(compared)
        differs = "; ".join(map(str, [*(compared.prompt or []), *compared.responses[0], *compared.responses[1]]))
        if final := self._final(compared):
            return EditJudgement(False, have, inf, f"{final}: {differs}")
        if need == 0.0:
            return EditJudgement(True, have, need, "they differ in case, spacing, punctuation or courtesy alone")
        return EditJudgement(
            have >= need, have, need, f"{have:.0f} bits of {need:.0f} needed; they differ in {differs}"
        )

    def _weigh(self, compared: _Compared) -> tuple[float, float]:
        """Bits for and needed. Of one request, only the response that differs is evidence: it is asked repeatedly."""
        have = need = 0.0
        same_request = compared.prompt == []
        one, other = compared.left.content, compared.right.content
        for name, edits in zip(("chosen", "rejected"), compared.responses, strict=True):
            shared = self._shared(getattr(one, name), getattr(other, name), one)
            cost = sum(edit.cost for edit in edits)
            have += shared if edits or not same_request else 0.0
            need += cost
            if edits and shared < PRIOR + cost:
                need = inf
        need += inf if compared.prompt is None else sum(edit.cost for edit in compared.prompt)
        return have, need + PRIOR if need else 0.0

    def _final(self, compared: _Compared) -> str:
        """The reason for which no evidence from the responses would do; empty if there is none."""
        if compared.prompt is None:
            return "other turns"
        telling = [edit for edit in compared.prompt if edit.telling]
        if not telling:
            return ""
        one, other = compared.left, compared.right
        if not self._asked_once(one, other) and (varied := self._varied(one, other)):
            return varied
        if _mirrored(telling, [edit for edits in compared.responses for edit in edits]):
            return "prompts and responses differ in the same words"
        return ""

    def _asked_once(self, left: _Side, right: _Side) -> bool:
        """True if one of two prompts has many times the pairs of the other."""
        return _dominated(*(self._asking[side.content.request()] for side in (left, right)))

    def _varied(self, left: _Side, right: _Side) -> str:
        """Why what differs between two prompts is what people vary here; empty if nothing says so."""
        slot, texts = _slot(_flat(left.asked), _flat(right.asked))
        before, after = slot
        if len(self._swaps.get((left.group, frozenset(texts)), ())) >= _CONTEXTS:
            return "words that stand for one another in several near prompts"
        if self._holds_several(slot):
            return "a place of the prompt that holds several texts"
        for start, end in self._turning_places(left.group):
            if before[: len(start)] == start and after[len(after) - len(end) :] == end:
                return "a place of the prompt in which other words turn the preference"
        ours, theirs = instructions(left.request), instructions(right.request)
        found = (self._instructions_varied(kind, ours[kind], theirs[kind]) for kind in ours if kind in theirs)
        return next(filter(None, found), "")

    def _instructions_varied(self, kind: str, left: Words, right: Words) -> str:
        if left == right or _dominated(self._instructed[kind, left], self._instructed[kind, right]):
            return ""
        if all(len(self._contexts[kind, words]) >= _CONTEXTS for words in (left, right)):
            return "two instructions that occur with other texts as well"
        slot, _ = _slot((f"{kind}:", *left), (f"{kind}:", *right))
        return "a place of the instruction that holds several texts" if self._holds_several(slot) else ""

    def _holds_several(self, slot: Slot) -> bool:
        return len(self._slots.get(slot, ())) >= _SLOT_TEXTS

    def _turning_places(self, group: int) -> set[Slot]:
        """The places at which prompts of a group differ that have opposite preferences of the same two responses."""
        if group not in self._turning:
            self._turning[group] = _turning_places(self._by_group[group])
        return self._turning[group]

    def _shared(self, left: str, right: str, content: PairContent) -> float:
        """Bits of the shingles that two responses share."""
        responses, prompts = self._pools.responses, self._pools.prompts
        shared = responses.shingles(left)
        if left != right:
            shared = np.intersect1d(shared, responses.shingles(right), assume_unique=True)
        bits = _bits(responses, shared)
        in_prompt = np.isin(shared, prompts.shingles(content.prompt))
        total = float(np.where(in_prompt, np.minimum(bits, _PROMPT_BITS), bits).sum())
        spread = max(self._spread.responses[left], self._spread.responses[right])
        return min(total, log2(self._spread.groups / spread)) if spread >= _CONTEXTS else total


def _bits(pool: Pool, shingles: U64) -> F64:
    """The evidence of shared shingles, in bits: (m,), by the number of other texts that hold each."""
    others = np.maximum(pool.frequency(shingles) - 1, 1)
    bits = np.log2(1 + max(len(pool), _FEWEST_TEXTS) / others)
    return np.asarray(np.minimum(bits, _SHINGLE_BITS), dtype=np.float64)


def spread_of(contents: Sequence[PairContent], groups: Sequence[int]) -> Spread:
    """How responses spread over the groups of near prompts of all pairs."""
    found: dict[str, set[int]] = defaultdict(set)
    for content, group in zip(contents, groups, strict=True):
        found[content.chosen].add(group)
        found[content.rejected].add(group)
    return Spread({text: len(held) for text, held in found.items()}, len(set(groups)))


def _turning_places(members: Iterable[tuple[Item, PairContent]]) -> set[Slot]:
    found: dict[frozenset[str], dict[str, dict[Hashable, Item]]] = defaultdict(lambda: defaultdict(dict))
    for item, content in members:
        chosen, rejected = content.said()
        found[frozenset((chosen, rejected))][chosen].setdefault(content.request(), item)
    slots = set()
    for preferring in found.values():
        for two in combinations(preferring.values(), 2):
            ours, theirs = ({_flat(asked(request_of(item.pair.prompt))) for item in side.values()} for side in two)
            slots |= {_slot(one, other)[0] for one in ours for other in theirs if one != other}
    return slots


def _contexts(sides: Iterable[_Side]) -> dict[tuple[str, Words], set[int]]:
    """The groups of near prompts in which each instruction occurs."""
    found: dict[tuple[str, Words], set[int]] = defaultdict(set)
    for side in sides:
        for kind, words in instructions(side.request).items():
            found[kind, words].add(side.group)
    return found


def _dominated(left: int, right: int) -> bool:
    return max(left, right) >= _MANY_TIMES * min(left, right)


def _slot(left: Words, right: Words) -> tuple[Slot, tuple[Words, Words]]:
    """The words before and after what differs, and what differs."""
    before, after = common_ends(left, right)
    slot = left[:before], left[len(left) - after :]
    return slot, (left[before : len(left) - after], right[before : len(right) - after])


def _flat(request: Asked) -> Words:
    return tuple(word for role, words in request for word in (f"{role}:", *words))


def _mirrored(prompt: Sequence[Edit], responses: Sequence[Edit]) -> bool:
    """True if a word that the prompts differ in is one that the responses differ in."""
    asked, said = ({word for edit in edits for word in (*edit.removed, *edit.added)} for edits in (prompt, responses))
    return bool({word for word in asked if len(word) > 1} & said)
