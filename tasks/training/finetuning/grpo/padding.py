"""Log-probabilities without most of the padding: rows of similar length go through the model together.

TRL pads a whole rollout to its longest prompt and its longest completion, and scores every position of that rectangle
on CPU; on the sample world three quarters of it is padding. A model that can be packed reads none of it, nor the prompt
of a group more than once (`models.packed_head`), and gets the rectangle whole. For others the naive equivalent, TRL's
own method, computes narrower rectangles.
"""

from __future__ import annotations

from typing import Any

import torch

from plumbline.tasks.models.completions import packs, unadapted

Scores = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]

_ROWS_TOGETHER = 16
"""Rows of one pass on CPU, where work grows with positions; on an accelerator a pass is as wide as TRL makes it."""


class WithoutPadding:
    """Mixin for a GRPOTrainer of TRL 1.16, over its `_get_per_token_logps_and_entropies`."""

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **images: Any,
    ) -> Scores:
        """(N, T) log-probabilities and, if asked for, entropies of the last `logits_to_keep` positions; 0 on padding.

        input_ids, attention_mask (N, P + T): prompts padded on the left, completions on the right; 1 = a token. An
        auxiliary loss is of a whole batch, so with one the batch stays whole.
        """
        naive = super()._get_per_token_logps_and_entropies  # type: ignore[misc]
        options = {"compute_entropy": compute_entropy, **images}
        packed = packs(unadapted(getattr(model, "module", model)))  # DDP keeps it under that name
        if packed or compute_aux_loss or any(value is not None for value in images.values()):
            options |= {"batch_size": batch_size, "compute_aux_loss": compute_aux_loss}
            whole: Scores = naive(model, input_ids, attention_mask, logits_to_keep, **options)
            return whole
        heads = attention_mask[:, :-logits_to_keep].sum(dim=1)  # (N,) prompt tokens
        tails = attention_mask[:, -logits_to_keep:].sum(dim=1).clamp(min=1)  # (N,) completion tokens
        order = (heads + tails).argsort(stable=True)
        rows_together = _ROWS_TOGETHER if input_ids.device.type == "cpu" else batch_size or len(order)
        start = input_ids.shape[1] - logits_to_keep  # where completions begin
        logps, entropies = [], []
        for rows in torch.split(order, rows_together):
            left, width = start - int(heads[rows].max()), int(tails[rows].max())
            kept = slice(left, start + width)
            some = naive(model, input_ids[rows, kept], attention_mask[rows, kept], width, **options)
            room = (0, logits_to_keep - width)
            logps.append(torch.nn.functional.pad(some[0], room))
            if compute_entropy:
                entropies.append(torch.nn.functional.pad(some[1], room))
        back = order.argsort()
        return torch.cat(logps)[back], torch.cat(entropies)[back] if compute_entropy else None, None
