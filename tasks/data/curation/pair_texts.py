"""The texts of a preference pair that are compared: the one place that knows its fields.

Another kind of feedback brings its own module like this one; the algorithms see only texts and their numbers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

from plumbline.data_contracts.records import Message
from plumbline.tasks.data.curation.canonical import canonical
from plumbline.tasks.data.curation.near_duplicates import NearDuplicates, find_near_duplicates, join_equal
from plumbline.tasks.data.curation.shingles import I64
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
    """Distinct texts of one field, sorted, with their near duplicates; texts are known by number."""

    def __init__(
        self, texts: Sequence[str], params: MatchingParams, seed: int, same: Callable[[str], Hashable] | None = None
    ) -> None:
        """`same` gives one key to texts that are the same by another rule, and so are near duplicates in any case."""
        self.texts = sorted(set(texts))
        self._numbers = {text: number for number, text in enumerate(self.texts)}
        self.near: NearDuplicates = find_near_duplicates(self.texts, params, seed)
        if same is not None and params.near:
            self.near = join_equal(self.near, [same(text) for text in self.texts])
        self._pairs = {(int(left), int(right)) for left, right in self.near.pairs}

    def alike(self, left: str, right: str) -> bool:
        """True if two texts are the same or verified near duplicates."""
        if left == right:
            return True
        numbers = sorted((self._numbers[left], self._numbers[right]))
        return (numbers[0], numbers[1]) in self._pairs

    def group(self, text: str) -> int:
        """Number of the component of near duplicates that holds the text; -1 for a text outside the pool."""
        number = self._numbers.get(text)
        return -1 if number is None else int(self.near.groups[number])

    def columns(self, text: str) -> I64:
        """The shingles of a text, as columns of `near.shingles`."""
        number = self._numbers[text]
        shingles = self.near.shingles
        return shingles.columns[shingles.offsets[number] : shingles.offsets[number + 1]]

    def members(self) -> dict[int, list[str]]:
        """The texts of each component."""
        found: dict[int, list[str]] = {}
        for text in self.texts:
            found.setdefault(self.group(text), []).append(text)
        return found


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


def build_pools(found: Sequence[PairContent], params: MatchingParams, seed: int) -> Pools:
    """Near duplicates among the distinct prompts, and among the responses that could matter.

    Two pairs are compared only where their prompts are alike, so the responses of a prompt that no other
    pair shares stay out of the second pool.
    """
    prompts = Pool([content.prompt for content in found], params, seed, plain_request)
    shared = Counter(prompts.group(content.prompt) for content in found)
    rivals = [content for content in found if shared[prompts.group(content.prompt)] > 1]
    responses = Pool([text for content in rivals for text in (content.chosen, content.rejected)], params, seed)
    return Pools(prompts, responses)
