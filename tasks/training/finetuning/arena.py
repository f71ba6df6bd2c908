"""The arena: a policy under training meets π_ref on held-out prompts, cheaply and always the same way.

1. Win rate: the policy and π_ref each answer the same prompts, π_ref once; the judge scores both, ties half.
   A sampled text may be longer in the judge's tokens than in those drawn (bytes that are no character, an end
   token added): where it is longer than the judge takes, the prompt is left out of this win rate.
   Sampling repeats the same random draws at each meeting, so two meetings differ by the policy alone.
2. KL(π ‖ π_ref) in nats per token: the mean divergence of the next-token distributions along the policy's own samples,
   as the evaluation reports it. The mean log-ratio of the drawn tokens has the same expectation and is noisier, so a
   limit on it picked checkpoints by luck.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from plumbline.data_contracts.errors import StageError
from plumbline.data_contracts.progress import Progress, silent
from plumbline.data_contracts.records import CuratedPair, Message
from plumbline.tasks.models.chat import encode_all, encode_prompts
from plumbline.tasks.models.divergence import sequence_divergences
from plumbline.tasks.models.sampling import Completion, sample
from plumbline.tasks.params.lengths import settled
from plumbline.tasks.params.method_sections import ValidationParams
from plumbline.tasks.params.on_policy import ArenaParams
from plumbline.tasks.training.finetuning.methods import Score

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Prompt = Sequence[Message]


@dataclass(frozen=True, slots=True)
class Meeting:
    """One meeting: what the policy answered and how it fared. `scores` (N,) of the judge, NaN where not judged."""

    completions: Sequence[Completion]
    scores: torch.Tensor
    win_rate: float
    kl_per_token: float  # nats

    def metrics(self) -> dict[str, float]:
        """Figures for a log: `win_rate`, `judge_score`, `kl_per_token`, `response_tokens`, `finished`."""
        judged = self.scores[~self.scores.isnan()]
        return {
            "win_rate": self.win_rate,
            "judge_score": float(judged.mean()) if judged.numel() else 0.0,
            "kl_per_token": self.kl_per_token,
            "response_tokens": sum(len(each.token_ids) for each in self.completions) / len(self.completions),
            "finished": sum(each.finished for each in self.completions) / len(self.completions),
        }


@dataclass(frozen=True, slots=True)
class Arena:
    """Prompts on which the policy meets π_ref, whose scored answers are fixed."""

    tokenizer: PreTrainedTokenizerBase
    prompts: Sequence[Prompt]
    reference_completions: Sequence[Completion]
    reference_scores: torch.Tensor  # (N,) of the judge, NaN where the answer is longer than it takes
    reference: PreTrainedModel | None = field(repr=False)  # None: the policy with its adapter off
    judge: Score
    judge_length: int  # tokens of prompt and response
    settings: ArenaParams | ValidationParams
    batch_size: int
    seed: int

    def meet(self, model: PreTrainedModel) -> Meeting:
        """Let the policy answer every prompt and compare with π_ref. The model's mode (train, eval) is kept."""
        completions = _answer(model, self.tokenizer, self.prompts, self.settings, self.seed, self.batch_size)
        scores = _scores(self.judge, self.tokenizer, self.prompts, completions, self.judge_length)
        differences = scores - self.reference_scores  # (N,)
        won = share_won(differences[~differences.isnan()])
        return Meeting(completions, scores, won, self._kl(model, completions))

    def _kl(self, model: PreTrainedModel, completions: Sequence[Completion]) -> float:
        heads = encode_prompts(self.tokenizer, self.prompts)
        sides = [(head, each.token_ids) for head, each in zip(heads, completions, strict=True)]
        found = sequence_divergences(model, self.reference, sides, batch_size=self.batch_size)
        return float(found.kl.sum() / found.tokens.sum())


def share_won(differences: torch.Tensor) -> float:
    """Share of positive differences, zeros counted half; of none, half."""
    if differences.numel() == 0:
        return 0.5
    won = (differences > 0).double() + 0.5 * (differences == 0).double()
    return float(won.mean())


def is_beyond(kl_per_token: float | None, limit: float | None) -> bool:
    """True if a KL (nats per token) was measured and exceeds the limit, if there is one."""
    return limit is not None and kl_per_token is not None and kl_per_token > limit


def near_first(metrics: dict[str, float], key: str, limit: float | None) -> dict[str, float]:
    """Metrics of an evaluation with `key`, a share in [0, 1], less 1 where the policy is beyond the limit.

    A policy within the limit then beats every one beyond it, and if none is within, the best of them is still kept.
    """
    if not is_beyond(metrics.get("eval_kl_per_token"), limit):
        return metrics
    return metrics | {key: metrics[key] - 1.0}


def open_arena(
    reference: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[CuratedPair],
    judge: Score,
    settings: ArenaParams | ValidationParams,
    *,
    batch_size: int,
    context: int,
    seed: int,
    judge_length: int | None = None,
    adapter: bool = False,
    progress: Progress = silent,
) -> Arena:
    """Let π_ref answer validation prompts once and keep the judge's scores.

    Prompts (distinct, in the order of `pairs`) that leave no room for `max_new_tokens`, in the model or for the
    judge, are passed over. A frozen copy of `reference` stays in memory for the KL, unless `adapter` says that the
    policy is π_ref with an adapter. Raises `StageError` when no prompt is left.
    """
    judge_length = context if judge_length is None else judge_length
    # the judge reads an end token behind a response that did not reach its own
    room = min(context, judge_length - 1)
    prompts = _distinct_prompts(pairs, tokenizer, room - settled(settings.max_new_tokens))[: settings.prompts]
    if not prompts:
        raise StageError(
            f"Expected validation prompts with room for {settings.max_new_tokens} new tokens in a context of "
            f"{room}, found none. Lower validation.max_new_tokens or training.max_completion_length, or set "
            f"validation.prompts: 0 and metric_for_best_model: preference_accuracy."
        )
    completions = _answer(reference, tokenizer, prompts, settings, seed, batch_size, progress)
    scores = _scores(judge, tokenizer, prompts, completions, judge_length)
    frozen = None if adapter else frozen_copy(reference)
    return Arena(tokenizer, prompts, completions, scores, frozen, judge, judge_length, settings, batch_size, seed)


def _distinct_prompts(
    pairs: Sequence[CuratedPair], tokenizer: PreTrainedTokenizerBase, longest: int
) -> list[tuple[Message, ...]]:
    distinct = list(dict.fromkeys(pair.prompt for pair in pairs))
    heads = encode_prompts(tokenizer, distinct)
    return [prompt for prompt, head in zip(distinct, heads, strict=True) if len(head) <= longest]


def _answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    settings: ArenaParams | ValidationParams,
    seed: int,
    batch_size: int,
    progress: Progress = silent,
) -> list[Completion]:
    return sample(
        model,
        tokenizer,
        prompts,
        max_new_tokens=settled(settings.max_new_tokens),
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=seed,
        batch_size=batch_size,
        progress=progress,
    )


def _scores(
    judge: Score,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    judge_length: int,
) -> torch.Tensor:
    """Scores (N,) of the judge, NaN where prompt and response together are longer than it takes.

    A judge with a tokenizer of its own says so itself; `judge_length` in the policy's tokens spares the others it.
    """
    texts = [each.text for each in completions]
    lengths = [len(head) + len(tail) for head, tail in encode_all(tokenizer, prompts, texts)]
    rows = [row for row, length in enumerate(lengths) if length <= judge_length]
    scores = judge([prompts[row] for row in rows], [texts[row] for row in rows])
    odd = sum(score is not None and not math.isfinite(score) for score in scores)
    if len(scores) != len(rows) or odd:
        raise StageError(
            f"Expected {len(rows)} finite scores from the judge, found {len(scores)} with {odd} not finite. Check the "
            "reward model's audit."
        )
    found = torch.full((len(prompts),), torch.nan, dtype=torch.float64)
    for row, score in zip(rows, scores, strict=True):
        found[row] = torch.nan if score is None else score
    return found


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy in eval mode that no optimiser will move."""
    frozen = copy.deepcopy(model).eval()
    frozen.requires_grad_(False)
    return frozen
