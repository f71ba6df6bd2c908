"""Prompts that are merely the common start of two texts: too short or too few, they are the responses' first words.

A file of `chosen` and `rejected` texts without a prompt column is read by their common start (TRL's implicit prompt).
Where the export forgot the prompt, that start is "Yes," or "You could", and a run would train on a handful of prompts
that nobody asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from plumbline.data_contracts.contract_suite import excerpt
from plumbline.data_contracts.records import PreferencePair

FORM = "implicit_prompt"
"""The format of such rows."""

FEWEST = 8
"""Fewest rows of a file that are judged."""

_WORDS = 4  # fewest words of a prompt
_SHARED = 10  # rows for each different prompt from which on there are too few
_KEPT = 10_000  # different prompts that are counted
_MESSAGES = re.compile(r'"chosen"\s*:\s*\[')  # a conversation says where its prompt ends


@dataclass(slots=True)
class ImpliedPrompts:
    """The implied prompts of one file."""

    rows: int = 0
    short: int = 0
    prompts: set[str] = field(default_factory=set)

    def count(self, pair: PreferencePair, raw: str) -> None:
        """Enter an accepted pair of the format, unless it holds messages."""
        if _MESSAGES.search(raw):
            return
        text = pair.prompt[-1].content
        self.rows += 1
        self.short += len(text.split()) < _WORDS
        if len(self.prompts) < _KEPT:
            self.prompts.add(text)

    @property
    def doubtful(self) -> bool:
        """True if most are too short to be prompts, or too many rows share one."""
        few = len(self.prompts) < _KEPT and self.rows >= _SHARED * len(self.prompts)
        return self.rows >= FEWEST and (2 * self.short > self.rows or few)

    def text(self, file: str) -> str:
        """The findings in a file, with examples."""
        shown = ", ".join(excerpt(text) for text in sorted(self.prompts)[:3])
        return (
            f"{file} ({self.rows} rows, {len(self.prompts)} prompts, {self.short} below {_WORDS} words, e.g. {shown})"
        )


def objection(files: Iterable[str]) -> str:
    """The objection to files whose implied prompts are doubtful."""
    return (
        f"no prompt column: expected a prompt for each pair, found only the common start of chosen and rejected, which "
        f"is too short or the same too often, in {'; '.join(files)}. Add the prompt (or name its column: --map "
        f"prompt=COLUMN); if these starts are the prompts, set feedback.on_implied_prompts=warn."
    )
