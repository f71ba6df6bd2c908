"""Rewards of responses under a trained reward model.

transformers' sequence-classification models read the reward at the rightmost token that is not
`config.pad_token_id`. Every sequence here ends with the end-of-assistant token of the chat template, so the
reading is right for any padding id other than that one, wherever else the id may stand in the text.
`padding_id` chooses such an id; with pad and eos one token, the tokenizer's own would cut the end off.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

import orjson
import torch

from plumbline.data_contracts.artifact import sha256_file
from plumbline.data_contracts.errors import ModelError
from plumbline.data_contracts.records import Message
from plumbline.tasks.models.chat import answered, encode_wholes, end_token_id, refused_by_template
from plumbline.tasks.models.checkpoints import weights_digest
from plumbline.tasks.models.fast_norm import use_fast_norms
from plumbline.tasks.models.loading import load_reward, load_tokenizer
from plumbline.tasks.models.logps import length_sorted_batches, pad_right, refuse_too_long
from plumbline.tasks.models.packing import backbone, can_pack, hidden_states, pack
from plumbline.tasks.training.rewards.layout import FACTS

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_READS_TEXT_BY = (FACTS, "chat_template.jinja", "tokenizer.json", "tokenizer.model", "tokenizer_config.json")


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """A token id to pad scored sequences with: the pad, unk or bos token, or any other, but never the end token."""
    end = end_token_id(tokenizer)
    candidates = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id, 0, 1)
    return next(int(token) for token in candidates if token is not None and token != end)


@dataclass(frozen=True)
class RewardModel:
    """A reward model ready to score; `folder` is where it was loaded from."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    batch_size: int = 64
    folder: Path | None = None

    @classmethod
    def load(cls, folder: Path, *, batch_size: int = 64, trust_remote_code: bool = False) -> Self:
        """Load what `train_reward` wrote. Raises `ModelError` when the folder holds no reward model."""
        try:
            facts = orjson.loads((folder / FACTS).read_bytes())
        except (OSError, orjson.JSONDecodeError) as error:
            raise ModelError(
                f"{folder}: expected a reward model with a readable {FACTS}, found {error}. "
                f"Run the stage `reward`, or restore the folder (`dvc checkout {folder}`)."
            ) from error
        model = load_reward(folder, trust_remote_code=trust_remote_code)
        use_fast_norms(model)
        tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
        return cls(model.eval(), tokenizer, facts["max_length"], batch_size, folder)

    def score(self, prompts: Sequence[Sequence[Message]], responses: Sequence[str]) -> list[float]:
        """Reward of each response to its prompt, in the order given.

        Raises `ModelError` when prompt and response exceed `max_length` tokens: split such pairs off first
        (`chat.split_by_context`).
        """
        return self._score_tokens(encode_wholes(self.tokenizer, prompts, responses))

    def score_fitting(self, prompts: Sequence[Sequence[Message]], responses: Sequence[str]) -> list[float | None]:
        """As `score`, with None for each response that exceeds `max_length` tokens together with its prompt.

        A text sampled from a policy may be longer in the tokens of this model than in those drawn. None, too, for a
        conversation that this model's chat template refuses.
        """
        rows, sequences = self._readable(prompts, responses)
        fits = [place for place, sequence in enumerate(sequences) if len(sequence) <= self.max_length]
        scores = self._score_tokens([sequences[place] for place in fits])
        found: list[float | None] = [None] * len(responses)
        for place, score in zip(fits, scores, strict=True):
            found[rows[place]] = score
        return found

    def _readable(
        self, prompts: Sequence[Sequence[Message]], responses: Sequence[str]
    ) -> tuple[Sequence[int], list[list[int]]]:
        """Rows of the conversations that the template takes, and their tokens."""
        try:
            return range(len(responses)), encode_wholes(self.tokenizer, prompts, responses)
        except ModelError:
            refused = refused_by_template(self.tokenizer, answered(prompts, responses), prompt=False)
            if not refused:
                raise
        rows = [row for row in range(len(responses)) if row not in refused]
        return rows, encode_wholes(self.tokenizer, [prompts[row] for row in rows], [responses[row] for row in rows])

    def _score_tokens(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        return score_tokens(self.model, sequences, self.max_length, self.batch_size, packed=self._packed)

    @cached_property
    def _packed(self) -> bool:
        return can_score_packed(self.model)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of weights, tokenizer and chat template: equal digests give equal rewards.

        Raises `ModelError` for a model that was not loaded from a folder.
        """
        if self.folder is None:
            raise ModelError("Expected a reward model loaded from a folder, found one made in memory. Use `load`.")
        named = [self.folder / name for name in _READS_TEXT_BY]
        parts = [weights_digest(self.folder), *(f"{path.name} {sha256_file(path)}" for path in named if path.is_file())]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def can_score_packed(model: PreTrainedModel) -> bool:
    """True if `model` rewards a sequence by its head `score` on the last token's state and can be packed."""
    from transformers.modeling_layers import GenericForSequenceClassification

    return isinstance(model, GenericForSequenceClassification) and can_pack(model)


@torch.no_grad()
def score_tokens(
    model: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    max_length: int,
    batch_size: int,
    *,
    packed: bool = False,
) -> list[float]:
    """Reward of each token sequence, in the order given; naive equivalent: a forward a sequence, last position.

    `packed`: without padding, for models of which `can_score_packed` is true.
    """
    lengths = [len(sequence) for sequence in sequences]
    refuse_too_long(lengths, max_length)
    rewards = [0.0] * len(sequences)
    was_training = model.training
    model.eval()
    batch_rewards = _packed_rewards if packed else _padded_rewards
    try:
        for rows in length_sorted_batches(lengths, batch_size):
            for row, reward in zip(rows, batch_rewards(model, [sequences[row] for row in rows]), strict=True):
                rewards[row] = reward
    finally:
        model.train(was_training)
    return rewards


def _padded_rewards(model: PreTrainedModel, sequences: Sequence[Sequence[int]]) -> list[float]:
    ids, mask = pad_right(sequences, model.config.get_text_config().pad_token_id)
    output = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False)
    rewards: list[float] = output.logits[:, 0].float().tolist()  # logits: (B, 1)
    return rewards


def _packed_rewards(model: PreTrainedModel, sequences: Sequence[Sequence[int]]) -> list[float]:
    ids, mask = (each.to(model.device) for each in pad_right(sequences, 0))
    lengths = mask.sum(1)
    packing = pack(ids, lengths, lengths - 1)
    states = hidden_states(backbone(model), packing, packing.starts + lengths - 1)  # (B, H)
    rewards: list[float] = model.score(states)[:, 0].float().tolist()
    return rewards
