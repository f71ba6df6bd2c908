"""Sampling from a policy: a key-value-cache loop that keeps live rows only.

The naive equivalent (one prompt at a time, a full forward a token) stands in the tests; given the same
uniform draws both pick the same tokens. What is done differently here:

1. prompts are sorted by length and read packed, what several begin with once (`packing`), where a model takes it; else
   they are batched with left padding, so a batch holds little of it;
2. a row that is finished leaves the batch and the cache;
3. a token is drawn by the inverse of the cumulative distribution (one cumsum, one search), not `multinomial`.

The draws are fixed by (seed, row, step) before anything runs, so a completion depends neither on the batch
size nor on the other prompts (up to float rounding in the model itself).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from plumbline.data_contracts.errors import ModelError
from plumbline.data_contracts.progress import Progress, silent
from plumbline.data_contracts.records import Message
from plumbline.tasks.models.chat import encode_prompts, end_token_id
from plumbline.tasks.models.completions import packs, unadapted
from plumbline.tasks.models.distributions import distributions
from plumbline.tasks.models.loading import context_length
from plumbline.tasks.models.logps import accepts, length_sorted_batches, pad_right
from plumbline.tasks.models.packing import attends_plainly, backbone, prefill

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled completion.

    `token_ids` includes the stop token when `finished`; `text` is the response without it, special tokens
    left out and outer white space trimmed. `logps` holds log-probabilities (nats) of `token_ids` under the
    policy at the sampling temperature (1 when greedy), before top-p: `logps.token_logps` gives the same.
    """

    text: str
    token_ids: tuple[int, ...]
    logps: tuple[float, ...]
    finished: bool


def stop_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every id that ends a completion: the template's end token, and each eos of tokenizer, config and generation."""
    generation = getattr(model, "generation_config", None)
    given = [
        end_token_id(tokenizer),
        tokenizer.eos_token_id,
        model.config.get_text_config().eos_token_id,
        getattr(generation, "eos_token_id", None),
    ]
    flat = {token for item in given if item is not None for token in (item if isinstance(item, list) else [item])}
    return sorted(flat)


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[Message]],
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    batch_size: int,
    progress: Progress = silent,
) -> list[Completion]:
    """Sample one completion a prompt, in the order given. `temperature` 0 means greedy.

    A row ends at a stop token (`finished`), after `max_new_tokens`, or where the model's context ends.
    Raises `ModelError` when a prompt leaves no room for a single token.
    """
    heads = encode_prompts(tokenizer, prompts)
    draws = torch.rand((len(heads), max_new_tokens), generator=torch.Generator().manual_seed(seed))  # (N, steps)
    return sample_ids(
        model,
        tokenizer,
        heads,
        draws,
        stops=stop_token_ids(model, tokenizer),
        temperature=temperature,
        top_p=top_p,
        batch_size=batch_size,
        progress=progress,
    )


def sample_ids(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    heads: Sequence[list[int]],
    draws: torch.Tensor,
    *,
    stops: Sequence[int],
    temperature: float,
    top_p: float,
    batch_size: int,
    progress: Progress = silent,
) -> list[Completion]:
    """`sample` for prompts that are token ids already, with the uniform draws (N, longest completion) to use.

    A row depends on its own draws alone, so a share of the rows gives the completions that all of them would.
    """
    context = context_length(model.config, tokenizer)
    too_long = [len(head) for head in heads if len(head) >= context]
    if too_long:
        raise ModelError(
            f"Expected prompts shorter than the context of {context} tokens, found {len(too_long)} of {len(heads)} "
            f"that leave no room to answer (the longest has {max(too_long)}). Set them aside first."
        )
    settings = _Settings(temperature, top_p, torch.tensor(stops, device=model.device))
    completions: list[Completion | None] = [None] * len(heads)
    done = 0
    was_training = model.training
    model.eval()
    try:
        for rows in length_sorted_batches([len(head) for head in heads], batch_size):
            limits = [min(draws.shape[1], context - len(heads[row])) for row in rows]
            batch = _sample_batch(model, [heads[row] for row in rows], draws[rows], limits, settings)
            for row, tokens in zip(rows, batch, strict=True):
                completions[row] = _completion(tokenizer, *tokens)
            done += len(rows)
            progress(done, len(heads), "sampling")
    finally:
        model.train(was_training)
    return [completion for completion in completions if completion is not None]


@dataclass(frozen=True, slots=True)
class _Settings:
    temperature: float
    top_p: float
    stops: torch.Tensor  # (number of stop ids,)


@torch.no_grad()
def _sample_batch(
    model: PreTrainedModel, heads: list[list[int]], draws: torch.Tensor, limits: list[int], settings: _Settings
) -> list[tuple[list[int], list[float], bool]]:
    """Token ids, log-probabilities and finished flag of each row of one batch."""
    device = model.device
    packed = packs(unadapted(model))
    ids, mask = pad_right(heads, 0) if packed else _pad_left(heads)
    ids, mask, draws = ids.to(device), mask.to(device), draws.to(device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)  # under padding on the right, its row's last
    width = mask.shape[1]
    # without padding no mask is needed, and attention takes its faster causal path
    padded = not bool(mask.all())
    attended = torch.cat([mask.bool(), mask.new_ones((len(heads), max(limits)), dtype=torch.bool)], dim=1)
    # the mask of a step as every layer wants it: transformers would take a tenth of the step's time to make it
    ready = attends_plainly(model)
    limit = torch.tensor(limits, device=device)
    live = torch.arange(len(heads), device=device)
    steps: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []  # rows, tokens, log-probabilities
    cache: Any = None
    if packed:
        logits, cache = _read(unadapted(model), ids, mask.sum(1))
    extra: dict[str, Any] = {"logits_to_keep": 1} if accepts(model, "logits_to_keep") else {}
    takes_positions = accepts(model, "position_ids")
    for step in range(max(limits)):
        if step > 0 or not packed:
            if takes_positions:
                extra["position_ids"] = positions
            if padded:
                seen = attended[:, : width + step]
                extra["attention_mask"] = seen[:, None, None] if ready and step > 0 else seen
            output = model(input_ids=ids, past_key_values=cache, use_cache=True, **extra)
            logits, cache = output.logits[:, -1], output.past_key_values
        drawn, logps = _draw(logits, draws[:, step], settings)  # (B,), (B,)
        steps.append((live, drawn, logps))
        stay = ~torch.isin(drawn, settings.stops) & (limit > step + 1)
        positions = positions[:, -1:] + 1
        if not bool(stay.all()):
            keep = stay.nonzero().squeeze(1)
            if keep.numel() == 0:
                break
            live, drawn, positions, attended, draws, limit = (
                each.index_select(0, keep) for each in (live, drawn, positions, attended, draws, limit)
            )
            # for beams, but any rows will do; `batch_select_indices` takes five times as long on CPU
            cache.reorder_cache(keep)
        ids = drawn.unsqueeze(1)
    return _by_row(len(heads), steps, settings.stops.tolist())


def _by_row(
    count: int, steps: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]], stops: list[int]
) -> list[tuple[list[int], list[float], bool]]:
    """Token ids, log-probabilities and finished flag of each row, from those of each step for the rows that lived."""
    tokens: list[list[int]] = [[] for _ in range(count)]
    logps: list[list[float]] = [[] for _ in range(count)]
    for step in steps:
        for row, token, logp in zip(*(each.tolist() for each in step), strict=True):
            tokens[row].append(token)
            logps[row].append(logp)
    return [(ids, said, ids[-1] in stops) for ids, said in zip(tokens, logps, strict=True)]


def _read(model: PreTrainedModel, ids: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """Logits (B, V) behind the prompts, `ids` (B, L) padded on the right, and the cache that holds them."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    states = prefill(backbone(model), ids, lengths, cache)
    logits: torch.Tensor = model.get_output_embeddings()(states)
    return logits, cache


def _draw(logits: torch.Tensor, draws: torch.Tensor, settings: _Settings) -> tuple[torch.Tensor, torch.Tensor]:
    """One token a row from logits (B, V) and uniform draws (B,), with its log-probability before top-p."""
    logits = logits.float() / (settings.temperature or 1.0)
    chances, shift = distributions(logits)  # (B, V), (B, 1)
    if settings.temperature == 0:
        drawn = logits.argmax(dim=-1)
    elif settings.top_p < 1:
        sorted_probs, order = chances.sort(dim=-1, descending=True, stable=True)
        # nucleus: the fewest tokens whose mass reaches top_p, so a token stays while the mass before it is below
        before = sorted_probs.cumsum(-1) - sorted_probs
        chosen = invert_cdf(sorted_probs * (before < settings.top_p), draws)
        drawn = order.gather(1, chosen.unsqueeze(1)).squeeze(1)
    else:
        drawn = invert_cdf(chances, draws)
    return drawn, (logits.gather(1, drawn.unsqueeze(1)) + shift).squeeze(1)


def invert_cdf(weights: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Index i of each row with cdf(i-1) <= u * total < cdf(i), which always has weight.

    weights (B, V) >= 0, not all 0 in a row; draws (B,) float32 from `torch.rand`, so at most 1 - 2^-24, for which
    u * total rounds below the total.
    """
    cumulative = weights.cumsum(-1)
    return torch.searchsorted(cumulative, draws.unsqueeze(1) * cumulative[:, -1:], right=True).squeeze(1)


def _pad_left(sequences: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(sequence) for sequence in sequences)
    ids = torch.zeros((len(sequences), width), dtype=torch.long)
    mask = torch.zeros((len(sequences), width), dtype=torch.long)
    for row, sequence in enumerate(sequences):
        ids[row, width - len(sequence) :] = torch.tensor(sequence)
        mask[row, width - len(sequence) :] = 1
    return ids, mask


def _completion(
    tokenizer: PreTrainedTokenizerBase, tokens: list[int], logps: list[float], finished: bool
) -> Completion:
    shown = tokens[:-1] if finished else tokens
    text = tokenizer.decode(shown, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Completion(text.strip(), tuple(tokens), tuple(logps), finished)
