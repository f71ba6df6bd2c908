"""Sampling one completion token by token, for whoever reads it while it grows.

The naive equivalent is `sampling.sample_ids` with one prompt: given the same draws both give the same tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from plumbline.tasks.models.logps import accepts
from plumbline.tasks.models.sampling import invert_cdf

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def stream_ids(
    model: PreTrainedModel,
    head: Sequence[int],
    draws: torch.Tensor,
    *,
    stops: Sequence[int],
    temperature: float,
    top_p: float,
) -> Iterator[int]:
    """Yield token ids, a stop token included, at most one for each of the uniform draws (steps,).

    `temperature` 0 means greedy. Nothing is computed before the next token is asked for.
    """
    ids = torch.tensor([list(head)], device=model.device)  # (1, T)
    extra: dict[str, Any] = {"logits_to_keep": 1} if accepts(model, "logits_to_keep") else {}
    cache: Any = None
    for draw in draws:
        with torch.inference_mode():
            output = model(input_ids=ids, past_key_values=cache, use_cache=True, **extra)
            token = _choose(output.logits[0, -1], draw, temperature, top_p)
        cache = output.past_key_values
        yield token
        if token in stops:
            return
        ids = torch.tensor([[token]], device=model.device)


def _choose(logits: torch.Tensor, draw: torch.Tensor, temperature: float, top_p: float) -> int:
    """One token from logits (V,) and a uniform draw ()."""
    logps = torch.log_softmax(logits.float() / (temperature or 1.0), dim=-1)
    if temperature == 0:
        return int(logps.argmax())
    draws = draw.to(logps.device).reshape(1)
    if top_p >= 1:
        return int(invert_cdf(logps.exp().unsqueeze(0), draws))
    probs, order = logps.exp().sort(descending=True, stable=True)
    before = probs.cumsum(-1) - probs
    nucleus = probs * (before < top_p)  # the fewest tokens whose mass reaches top_p
    return int(order[invert_cdf(nucleus.unsqueeze(0), draws)])
