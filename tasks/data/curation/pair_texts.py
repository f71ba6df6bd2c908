"""The texts of a preference pair that are compared: the one place that knows its fields.

Another kind of feedback brings its own module like this one; the algorithms see only texts and their numbers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

import numpy as np

from plumbline.data_contracts.records import Message
from plumbline.tasks.data.curation.canonical import canonical
from plumbline.tasks.data.curation.near_duplicates import NearDuplicates, join_equal, near_duplicates_among
from plumbline.tasks.data.curation.shingles import I64, U64, gather
from plumbline.tasks.data.curation.sketches import Sketches, sketch
from plumbline.tasks.data.curation.verdicts import Item
from plumbline.tasks.data.curation.wording import plain_request
from plumbline.tasks.params.curation import MatchingParams

_ENDING = re.compile(r"[.,;:!…]+(?=\s|$)")


@dataclass(frozen=True, slots=True)
class PairContent:
    """The canonical texts of one pair.

    `turns` are role and length of each turn of the prompt: with the text they tell a second turn from words that only
    look like one. Responses that differ in what canonical form drops (case, spacing) are kept as they are: a pair
    that prefers "HELLO" to "hello" is not the one that prefers "hello" to "HELLO".
    """

    prompt: str
    chosen: str
    rejected: str
    turns: tuple[tuple[str, int], ...] = ()

    def request(self) -> Hashable:
        """The key that two pairs share that ask for the same: every turn, the system prompt included."""
        return self.prompt, self.turns

    def said(self) -> tuple[str, str]:
        """Chosen and rejected without the punctuation after a word, unless they differ in nothing else."""
        chosen, rejected = _ENDING.sub("", self.chosen), _ENDING.sub("", self.rejected)
        return (chosen, rejected) if chosen != rejected else (self.chosen, self.rejected)


class Pool:
    """Distinct texts of one field with their near duplicates, among the texts of a `Corpus`."""

    def __init__(self, sketches: Sketches, near: NearDuplicates) -> None:
        self.sketches, self.near = sketches, near
        self._pairs = {(left, right) for left, right in near.pairs.tolist()}
        self._groups = np.full(len(sketches.texts), -1, dtype=np.int64)
        self._groups[near.alive] = near.groups[near.alive]

    def alike(self, left: str, right: str) -> bool:
        """True if two texts are the same or verified near duplicates."""
        if left == right:
            return True
        numbers = sorted((self.sketches.numbers[left], self.sketches.numbers[right]))
        return (numbers[0], numbers[1]) in self._pairs

    def group(self, text: str) -> int:
        """Number of the component of near duplicates that holds the text; -1 for a text outside the pool."""
        number = self.sketches.numbers.get(text)
        return -1 if number is None else int(self._groups[number])

    def shingles(self, text: str) -> U64:
        """The hashes of the shingles of a text, sorted."""
        return self.sketches.row(self.sketches.numbers[text])

    @cached_property
    def _ordered(self) -> U64:
        return np.sort(gather(self.sketches.hashes, self.sketches.offsets, self.near.alive)[0])

    def frequency(self, shingles: U64) -> I64:
        """How many texts of the pool hold each of these shingles."""
        left, right = (np.searchsorted(self._ordered, shingles, side=side) for side in ("left", "right"))
        return np.asarray(right - left, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.near.alive)


class Corpus:
    """The texts of one field over the rounds of curation: what is known of each by itself is found once."""

    def __init__(self, params: MatchingParams, seed: int, same: Callable[[str], str] | None = None) -> None:
        """`same` gives one key to texts that are the same by another rule, and so are near duplicates in any case."""
        self._params, self._seed, self._same = params, seed, same
        self._sketches: Sketches | None = None
        self._keys: U64 | None = None

    def pool(self, texts: Iterable[str]) -> Pool:
        """The near duplicates among these texts."""
        wanted = set(texts)
        if self._sketches is None or not wanted <= self._sketches.numbers.keys():
            self._learn(sorted(wanted))
        sketches = self._sketches
        assert sketches is not None
        numbers = np.fromiter(map(sketches.numbers.__getitem__, wanted), dtype=np.int64, count=len(wanted))
        near = near_duplicates_among(sketches, np.sort(numbers), self._params, self._seed)
        return Pool(sketches, near if self._keys is None else join_equal(near, self._keys))

    def _learn(self, texts: list[str]) -> None:
        self._sketches = sketch(texts, self._params, self._seed)
        if self._same is not None and self._params.near:
            self._keys = digests(map(self._same, texts))


def digests(texts: Iterable[str]) -> U64:
    """A hash of each text: (n,)."""
    found = b"".join([blake2b(text.encode(), digest_size=8).digest() for text in texts])
    return np.frombuffer(found, dtype="<u8").astype(np.uint64)


@dataclass(frozen=True, slots=True)
class Pools:
    """The distinct prompts of all pairs, and the distinct responses to prompts that several pairs share."""

    prompts: Pool
    responses: Pool

    def alike(self, left: PairContent, right: PairContent) -> bool:
        """True if prompt, chosen and rejected are each the same or verified near duplicates."""
        return self.prompts.alike(left.prompt, right.prompt) and self.alike_responses(left, right)

    def alike_responses(self, left: PairContent, right: PairContent) -> bool:
        """True if chosen and rejected are each the same or verified near duplicates.

        Where a pair's own responses resemble one another, only equal responses count: a near match
        would not tell a preference from its opposite.
        """
        if (left.chosen, left.rejected) == (right.chosen, right.rejected):
            return True
        return (
            not self.responses.alike(left.chosen, left.rejected)
            and not self.responses.alike(right.chosen, right.rejected)
            and self.responses.alike(left.chosen, right.chosen)
            and self.responses.alike(left.rejected, right.rejected)
        )

    def groups(self, content: PairContent) -> tuple[int, int, int]:
        """Components of prompt, chosen and rejected: equal wherever two pairs can be alike.

        A response outside the pool has no rival, and the group -1.
        """
        return (
            self.prompts.group(content.prompt),
            self.responses.group(content.chosen),
            self.responses.group(content.rejected),
        )


def contents(items: Sequence[Item], params: MatchingParams) -> list[PairContent]:
    """The canonical texts of each item."""
    known: dict[str, str] = {}

    def canon(text: str) -> str:
        if text not in known:
            known[text] = canonical(text, params)
        return known[text]

    found = []
    for item in items:
        pair = item.pair
        prompt, turns = prompt_text(pair.prompt, params)
        chosen, rejected = canon(pair.chosen), canon(pair.rejected)
        if chosen == rejected:
            chosen, rejected = pair.chosen, pair.rejected
        found.append(PairContent(prompt, chosen, rejected, turns))
    return found


def prompt_text(prompt: Iterable[Message], params: MatchingParams) -> tuple[str, tuple[tuple[str, int], ...]]:
    """The canonical text of a prompt, and role and length of each of its turns."""
    turns = [(message.role, canonical(message.content, params)) for message in prompt]
    between = " " if params.fold_space else "\n"
    text = between.join(f"{role}: {said}".rstrip() if params.fold_space else f"{role}: {said}" for role, said in turns)
    return text, tuple((role, len(said)) for role, said in turns)


class Corpora:
    """Prompts and responses over the rounds of curation."""

    def __init__(self, params: MatchingParams, seed: int) -> None:
        self._prompts, self._responses = Corpus(params, seed, plain_request), Corpus(params, seed)

    def pools(self, found: Sequence[PairContent]) -> Pools:
        """Near duplicates among the distinct prompts, and among the responses that could matter.

        Two pairs are compared only where their prompts are alike, so the responses of a prompt that no other
        pair shares stay out of the second pool.
        """
        prompts = self._prompts.pool(content.prompt for content in found)
        shared = Counter(prompts.group(content.prompt) for content in found)
        rivals = [content for content in found if shared[prompts.group(content.prompt)] > 1]
        return Pools(prompts, self._responses.pool(text for each in rivals for text in (each.chosen, each.rejected)))


def build_pools(found: Sequence[PairContent], params: MatchingParams, seed: int) -> Pools:
    """The pools of one set of pairs."""
    return Corpora(params, seed).pools(found)
