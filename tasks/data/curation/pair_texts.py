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

from plumbline.data_contracts.records import Message, PreferencePair
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
        self.groups = np.full(len(sketches.texts), -1, dtype=np.int64)
        self.groups[near.alive] = near.groups[near.alive]

    def alike(self, left: str, right: str) -> bool:
        """True if two texts are the same or verified near duplicates."""
        if left == right:
            return True
        numbers = sorted((self.sketches.numbers[left], self.sketches.numbers[right]))
        return (numbers[0], numbers[1]) in self._pairs

    def group(self, text: str) -> int:
        """Number of the component of near duplicates that holds the text; -1 for a text outside the pool."""
        number = self.sketches.numbers.get(text)
        return -1 if number is None else int(self.groups[number])

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
            self.learn(sorted(wanted))
        assert self._sketches is not None
        numbers = np.fromiter(map(self._sketches.numbers.__getitem__, wanted), dtype=np.int64, count=len(wanted))
        return self.among(np.sort(numbers))

    def among(self, numbers: I64) -> Pool:
        """The near duplicates among the texts of these numbers, in the order in which they were learned."""
        assert self._sketches is not None, "learn the texts first"
        near = near_duplicates_among(self._sketches, numbers, self._params, self._seed)
        return Pool(self._sketches, near if self._keys is None else join_equal(near, self._keys))

    def learn(self, texts: list[str]) -> None:
        """Take distinct sorted texts as those of the corpus."""
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
    return [content_of(item.pair, params) for item in items]


def content_of(pair: PreferencePair, params: MatchingParams) -> PairContent:
    """The canonical texts of a pair."""
    prompt, turns = prompt_text(pair.prompt, params)
    return PairContent(prompt, *canonical_pair(pair.chosen, pair.rejected, params), turns)


def canonical_pair(chosen: str, rejected: str, params: MatchingParams) -> tuple[str, str]:
    """The canonical texts of two responses; the texts as they are where these differ in nothing else."""
    found = canonical(chosen, params), canonical(rejected, params)
    return (chosen, rejected) if found[0] == found[1] else found


def prompt_text(prompt: Iterable[Message], params: MatchingParams) -> tuple[str, tuple[tuple[str, int], ...]]:
    """The canonical text of a prompt, and role and length of each of its turns."""
    turns = canonical_turns([(message.role, message.content) for message in prompt], params)
    return joined_turns(turns, params)[0], tuple((role, len(said)) for role, said in turns)


def canonical_turns(turns: Iterable[tuple[str, str]], params: MatchingParams) -> list[tuple[str, str]]:
    """Role and canonical text of each turn."""
    return [(role, canonical(said, params)) for role, said in turns]


def joined_turns(turns: Sequence[tuple[str, str]], params: MatchingParams) -> tuple[str, str]:
    """Canonical turns as one text, and a text that only the same turns have (`PairContent.request`)."""
    between = " " if params.fold_space else "\n"
    text = between.join(
        [f"{role}: {said}".rstrip() if params.fold_space else f"{role}: {said}" for role, said in turns]
    )
    return text, " ".join([f"{role} {len(said)}" for role, said in turns]) + "\n" + text


def pools_of(prompts: Pool, rivals: Sequence[PairContent], responses: Corpus) -> Pools:
    """The pools of pairs, given their prompts and the contents of those whose prompt is near that of another.

    Two pairs are compared only where their prompts are alike, so the responses of a prompt that no other
    pair shares stay out of the second pool.
    """
    return Pools(prompts, responses.pool(text for each in rivals for text in (each.chosen, each.rejected)))


def build_pools(found: Sequence[PairContent], params: MatchingParams, seed: int) -> Pools:
    """The pools of one set of pairs: the distinct prompts, and the responses that could matter."""
    prompts = Corpus(params, seed, plain_request).pool(content.prompt for content in found)
    shared = Counter(prompts.group(content.prompt) for content in found)
    rivals = [content for content in found if shared[prompts.group(content.prompt)] > 1]
    return pools_of(prompts, rivals, Corpus(params, seed))
