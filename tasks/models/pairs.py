"""Preference pairs as tokens, made once: the trainers, π_ref and the reward model see the same."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from plumbline.data_contracts.errors import StageError
from plumbline.data_contracts.records import CuratedPair
from plumbline.tasks.models.chat import encode_all

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class TokenPair:
    """One preference pair: token ids of the prompt and of both responses, end token included."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]

    @property
    def longest(self) -> int:
        """Tokens of the prompt with the longer response."""
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids))

    @property
    def total(self) -> int:
        """Tokens of both sequences: the prompt with either response."""
        return 2 * len(self.prompt_ids) + len(self.chosen_ids) + len(self.rejected_ids)


@dataclass(frozen=True, slots=True)
class TokenisedPairs:
    """Pairs that fit, beside their tokens, and how many were set aside for their length."""

    pairs: list[CuratedPair]
    tokens: list[TokenPair]
    too_long: int

    def subset(self, rows: Sequence[int]) -> TokenisedPairs:
        """The given rows, in that order."""
        return TokenisedPairs([self.pairs[row] for row in rows], [self.tokens[row] for row in rows], self.too_long)


def tokenise_pairs(pairs: Sequence[CuratedPair], tokenizer: PreTrainedTokenizerBase, max_length: int) -> TokenisedPairs:
    """Tokenise pairs and set aside those longer than `max_length` tokens with either response.

    Where a template tokenises the end of the prompt differently before the two responses, the prompt
    is what both share, as in TRL's `DPOTrainer`.
    """
    prompts = [pair.prompt for pair in pairs]
    chosen = encode_all(tokenizer, prompts, [pair.chosen for pair in pairs])
    rejected = encode_all(tokenizer, prompts, [pair.rejected for pair in pairs])
    tokens = [_join(*sides) for sides in zip(chosen, rejected, strict=True)]
    kept = [row for row, pair in enumerate(tokens) if pair.longest <= max_length]
    return TokenisedPairs([pairs[row] for row in kept], [tokens[row] for row in kept], len(tokens) - len(kept))


def fitting_pairs(
    pairs: Sequence[CuratedPair], tokenizer: PreTrainedTokenizerBase, max_length: int, name: str, where: str
) -> TokenisedPairs:
    """`tokenise_pairs`, and a `StageError` that says what to do when no pair of the split `name` fits.

    `where` is the section of params that `max_length` stands in.
    """
    if not pairs:
        raise StageError(
            f"Expected {name} pairs, found none: the {name} split is empty. Add pairs with other prompts, or raise the "
            f"share of that split in curation.split."
        )
    tokenised = tokenise_pairs(pairs, tokenizer, max_length)
    if not tokenised.tokens:
        raise StageError(
            f"Expected {name} pairs of at most {max_length} tokens (prompt and longer response), found none among "
            f"{len(pairs)}. Raise {where}.max_length up to the model's context, take a base with a longer one, "
            f"or lower curation's length limits."
        )
    return tokenised


def digest_of_tokens(tokens: Sequence[TokenPair]) -> str:
    """SHA-256 (hex) of tokenised pairs: lengths, then ids, as 64-bit integers."""
    digest = hashlib.sha256()
    for pair in tokens:
        for ids in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids):
            digest.update(array("q", [len(ids), *ids]).tobytes())
    return digest.hexdigest()


def _join(chosen: tuple[list[int], list[int]], rejected: tuple[list[int], list[int]]) -> TokenPair:
    shared = min(len(chosen[0]), len(rejected[0]))
    return TokenPair(
        prompt_ids=chosen[0][:shared],
        chosen_ids=chosen[0][shared:] + chosen[1],
        rejected_ids=rejected[0][shared:] + rejected[1],
    )
