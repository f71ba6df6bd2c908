"""What of a preference pair is compared: the one place that knows its fields.

Another kind of feedback brings its own module like this one; the algorithms see only texts and their numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tasks.curation.canonical import canonical
from tasks.curation.near_duplicates import NearDuplicates, find_near_duplicates
from tasks.curation.params import MatchingParams
from tasks.curation.verdicts import Item


@dataclass(frozen=True, slots=True)
class Content:
    """The canonical texts of one pair."""

    prompt: str
    chosen: str
    rejected: str


class Pool:
    """Distinct texts of one field, sorted, with their near duplicates; texts are known by number."""

    def __init__(self, texts: Sequence[str], params: MatchingParams, seed: int) -> None:
        self.texts = sorted(set(texts))
        self._numbers = {text: number for number, text in enumerate(self.texts)}
        self.near: NearDuplicates = find_near_duplicates(self.texts, params, seed)
        self._pairs = {(int(left), int(right)) for left, right in self.near.pairs}

    def alike(self, left: str, right: str) -> bool:
        """Whether two texts are the same or verified near duplicates."""
        if left == right:
            return True
        numbers = sorted((self._numbers[left], self._numbers[right]))
        return (numbers[0], numbers[1]) in self._pairs

    def group(self, text: str) -> int:
        """Number of the component of near duplicates that holds the text; -1 for a text outside the pool."""
        number = self._numbers.get(text)
        return -1 if number is None else int(self.near.groups[number])

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

    def alike(self, left: Content, right: Content) -> bool:
        """Whether prompt, chosen and rejected are each the same or verified near duplicates.

        Where a pair's own responses resemble one another, only equal responses count: a near match
        would not tell a preference from its opposite.
        """
        if (left.chosen, left.rejected) == (right.chosen, right.rejected):
            return self.prompts.alike(left.prompt, right.prompt)
        return (
            self.prompts.alike(left.prompt, right.prompt)
            and not self.responses.alike(left.chosen, left.rejected)
            and not self.responses.alike(right.chosen, right.rejected)
            and self.responses.alike(left.chosen, right.chosen)
            and self.responses.alike(left.rejected, right.rejected)
        )

    def groups(self, content: Content) -> tuple[int, int, int]:
        """Components of prompt, chosen and rejected: equal wherever two pairs can be alike.

        A response outside the pool has no rival, and the group -1.
        """
        return (
            self.prompts.group(content.prompt),
            self.responses.group(content.chosen),
            self.responses.group(content.rejected),
        )


def contents(items: Sequence[Item], params: MatchingParams) -> list[Content]:
    """The canonical texts of each item."""
    known: dict[str, str] = {}

    def canon(text: str) -> str:
        if text not in known:
            known[text] = canonical(text, params)
        return known[text]

    return [Content(canon(i.pair.prompt_text()), canon(i.pair.chosen), canon(i.pair.rejected)) for i in items]


def build_pools(found: Sequence[Content], params: MatchingParams, seed: int) -> Pools:
    """Near duplicates among the distinct prompts, and among the responses that could matter.

    Two pairs are compared only where their prompts are alike, so the responses of a prompt that no other
    pair shares stay out of the second pool.
    """
    prompts = Pool([content.prompt for content in found], params, seed)
    shared = Counter(prompts.group(content.prompt) for content in found)
    rivals = [content for content in found if shared[prompts.group(content.prompt)] > 1]
    responses = Pool([text for content in rivals for text in (content.chosen, content.rejected)], params, seed)
    return Pools(prompts, responses)
