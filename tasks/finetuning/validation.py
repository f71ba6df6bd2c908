"""What the policy under training is measured by on the validation split, cheaply and always the same way.

1. Preference accuracy: share of pairs whose implicit reward beta * (log π - log π_ref) is higher for the chosen
   response (Rafailov et al. 2023, eq. 5); ties count half.
2. Win rate: the policy and π_ref each answer the same prompts, π_ref once; the judge scores both, ties half.
   A sampled text may be longer in the judge's tokens than in those drawn (bytes that are no character, an end
   token added): where it is longer than the judge takes, the prompt is left out of this win rate.
   Sampling repeats the same random draws at each evaluation, so two evaluations differ by the policy alone.
3. KL(π ‖ π_ref) in nats per token, estimated on the policy's own samples by mean log-ratio.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from data_contracts.errors import StageError
from data_contracts.progress import Progress, silent
from data_contracts.records import Message
from tasks.finetuning.methods import Judge
from tasks.finetuning.params import DpoParams, ValidationParams
from tasks.models.chat import encode_all, encode_prompts
from tasks.models.logps import token_logps
from tasks.models.pairs import TokenisedPairs
from tasks.models.sampling import Completion, sample

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Prompt = Sequence[Message]


@dataclass(frozen=True, slots=True)
class Arena:
    """Prompts on which the policy meets π_ref, whose scored answers are fixed."""

    prompts: Sequence[Prompt]
    reference_scores: torch.Tensor  # (N,) of the judge, NaN where the answer is longer than it takes
    reference: PreTrainedModel | None  # None: the policy with its adapter off
    judge: Judge
    judge_length: int  # tokens of prompt and response
    settings: ValidationParams
    seed: int


@dataclass(frozen=True, slots=True)
class Validation:
    """Everything that an evaluation during training needs."""

    tokenizer: PreTrainedTokenizerBase
    pairs: TokenisedPairs
    reference_logps: torch.Tensor  # (N, 2), nats; columns chosen, rejected
    beta: float
    max_length: int
    batch_size: int
    arena: Arena | None

    def measure(self, model: PreTrainedModel) -> dict[str, float]:
        """Metrics of a policy: `preference_accuracy`, `margin`, and with an arena `win_rate`, `kl_per_token`, …"""
        metrics = self._preference(model)
        if self.arena is not None:
            metrics |= self._meet(model, self.arena)
        return metrics

    def _preference(self, model: PreTrainedModel) -> dict[str, float]:
        sides = [(pair.prompt_ids, ids) for pair in self.pairs.tokens for ids in (pair.chosen_ids, pair.rejected_ids)]
        logps = token_logps(model, sides, max_length=self.max_length, batch_size=self.batch_size)
        rewards = self.beta * (torch.stack([row.sum() for row in logps]).reshape(-1, 2) - self.reference_logps)
        margins = rewards[:, 0] - rewards[:, 1]  # (N,)
        return {"preference_accuracy": share_won(margins), "margin": float(margins.mean())}

    def _meet(self, model: PreTrainedModel, arena: Arena) -> dict[str, float]:
        completions = _answer(model, self.tokenizer, arena.prompts, arena.settings, arena.seed, self.batch_size)
        scores = _scores(arena.judge, self.tokenizer, arena.prompts, completions, arena.judge_length)
        differences = scores - arena.reference_scores  # (N,)
        return {
            "win_rate": share_won(differences[~differences.isnan()]),
            "kl_per_token": self._kl(model, arena, completions),
            "response_tokens": sum(len(each.token_ids) for each in completions) / len(completions),
            "finished": sum(each.finished for each in completions) / len(completions),
        }

    def _kl(self, model: PreTrainedModel, arena: Arena, completions: Sequence[Completion]) -> float:
        heads = encode_prompts(self.tokenizer, arena.prompts)
        sides = [(head, list(each.token_ids)) for head, each in zip(heads, completions, strict=True)]
        limit = max(len(head) + len(tail) for head, tail in sides)
        policy = token_logps(model, sides, max_length=limit, batch_size=self.batch_size)
        with _as_reference(model, arena.reference) as frozen:
            reference = token_logps(frozen, sides, max_length=limit, batch_size=self.batch_size)
        ratios = torch.cat(policy) - torch.cat(reference)  # (all tokens,), nats
        return float(ratios.mean())


def share_won(differences: torch.Tensor) -> float:
    """Share of positive differences, zeros counted half; of none, half."""
    if differences.numel() == 0:
        return 0.5
    won = (differences > 0).double() + 0.5 * (differences == 0).double()
    return float(won.mean())


def draw_pairs(pairs: TokenisedPairs, params: DpoParams, seed: int) -> TokenisedPairs:
    """At most `validation.pairs` pairs, drawn with the seed, in the order of the split."""
    count = min(params.validation.pairs, len(pairs.tokens))
    return pairs.subset(sorted(random.Random(seed).sample(range(len(pairs.tokens)), count)))


def open_arena(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: TokenisedPairs,
    judge: Judge,
    params: DpoParams,
    *,
    context: int,
    seed: int,
    judge_length: int | None = None,
    progress: Progress = silent,
) -> Arena | None:
    """Let π_ref (`model`, not yet trained) answer validation prompts once and keep the judge's scores.

    Prompts that leave no room for `max_new_tokens`, in the model or for the judge, are passed over. None when
    `validation.prompts` is 0.
    With full fine-tuning a frozen copy of π_ref stays in memory for the KL; with adapters none is needed.
    """
    settings = params.validation
    if settings.prompts == 0:
        return None
    judge_length = context if judge_length is None else judge_length
    # the judge reads an end token behind a response that did not reach its own
    room = min(context, judge_length - 1)
    prompts = _distinct_prompts(pairs, tokenizer, room - settings.max_new_tokens)[: settings.prompts]
    if not prompts:
        raise StageError(
            f"Expected validation prompts with room for {settings.max_new_tokens} new tokens in a context of "
            f"{room}, found none. Lower validation.max_new_tokens, or set validation.prompts: 0 and "
            f"best_by: preference_accuracy."
        )
    completions = _answer(model, tokenizer, prompts, settings, seed, params.eval_batch_size, progress)
    reference = None if params.lora is not None else _frozen_copy(model)
    scores = _scores(judge, tokenizer, prompts, completions, judge_length)
    return Arena(prompts, scores, reference, judge, judge_length, settings, seed)


def _distinct_prompts(
    pairs: TokenisedPairs, tokenizer: PreTrainedTokenizerBase, longest: int
) -> list[tuple[Message, ...]]:
    distinct = list(dict.fromkeys(pair.prompt for pair in pairs.pairs))
    heads = encode_prompts(tokenizer, distinct)
    return [prompt for prompt, head in zip(distinct, heads, strict=True) if len(head) <= longest]


def _answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    settings: ValidationParams,
    seed: int,
    batch_size: int,
    progress: Progress = silent,
) -> list[Completion]:
    return sample(
        model,
        tokenizer,
        prompts,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=seed,
        batch_size=batch_size,
        progress=progress,
    )


def _scores(
    judge: Judge,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    judge_length: int,
) -> torch.Tensor:
    """Scores (N,) of the judge, NaN where prompt and response together are longer than it takes."""
    texts = [each.text for each in completions]
    lengths = torch.tensor([len(head) + len(tail) for head, tail in encode_all(tokenizer, prompts, texts)])
    rows = (lengths <= judge_length).nonzero().squeeze(1)
    found = torch.tensor(judge([prompts[row] for row in rows], [texts[row] for row in rows]), dtype=torch.float64)
    if found.shape != rows.shape or not bool(torch.isfinite(found).all()):
        raise StageError(
            f"Expected {len(rows)} finite scores from the judge, found shape {tuple(found.shape)} with "
            f"{int((~torch.isfinite(found)).sum())} not finite. Check the reward model's audit."
        )
    return torch.full((len(prompts),), torch.nan, dtype=torch.float64).index_put((rows,), found)


def _frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    frozen = copy.deepcopy(model).eval()
    frozen.requires_grad_(False)
    return frozen


@contextmanager
def _as_reference(model: PreTrainedModel, frozen: PreTrainedModel | None) -> Iterator[PreTrainedModel]:
    """π_ref: the frozen copy, or the policy with its adapter switched off."""
    if frozen is not None:
        yield frozen
        return
    with model.disable_adapter():
        yield model
