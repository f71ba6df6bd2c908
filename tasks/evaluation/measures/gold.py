"""The truth of a sample world, known to evaluation alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from plumbline.data_contracts.records import Message

Prompt = Sequence[Message]


@dataclass(frozen=True, slots=True)
class Gold:
    """The gold judgement of a response, in a world with a known truth.

    `reward(prompt, response)` is higher for a better response; `should_refuse(prompt)` and
    `is_refusal(response)` define safety. Where `knows(prompt)` is false the prompt is not of that
    world: it takes no part in any figure that rests on the truth.
    """

    reward: Callable[[Prompt, str], float]
    should_refuse: Callable[[Prompt], bool]
    is_refusal: Callable[[str], bool]
    knows: Callable[[Prompt], bool] = lambda prompt: True

    def rewards(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """`reward` over a batch, in the form of any pointwise score."""
        return [self.reward(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
