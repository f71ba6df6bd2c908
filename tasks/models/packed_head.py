"""TRL's fused head on packed sequences: what TRL's trainers ask of a model, without padding and common beginnings.

TRL's trainers call `model(input_ids=..., attention_mask=..., labels=..., fused_lm_head=True)` and get numbers of each
labelled token (`trl.trainer.utils.add_fused_lm_head`). On CPU its forward reads the whole padded rectangle, each prompt
once a response, and runs the head on every position of it, labelled or not. That forward is the naive equivalent, to
which tests compare this one, gradients included. On CPU, where work grows with positions:

1. what rows have in common (the prompt of a pair, of a group) is read once, and no padding (`responses`);
2. the head runs at labelled positions alone.

Whatever does not fit is left to TRL's forward: other devices and types, models that cannot be packed, dropout,
recomputed activations, masks with holes, arguments that are not named above.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from types import MethodType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch
from torch import Tensor

from plumbline.tasks.models.completions import Layout, completion_logits, packs
from plumbline.tasks.models.distributions import logps_and_entropies, target_logps
from plumbline.tasks.models.fast_linear import use_fast_linears
from plumbline.tasks.models.fast_norm import use_fast_norms

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROWS = 64
"""Rows of one packed pass: several groups of candidates, and logits of a few thousand tokens."""

_READ = {"input_ids", "attention_mask", "labels", "use_cache", "num_items_in_batch"}


def read_packed(model: PreTrainedModel, outputs: Collection[str], temperature: float = 1.0) -> None:
    """Let a model with TRL's fused head read packed sequences where it can, by the faster layers of `tasks.models`.

    `outputs` and `temperature` are those that `add_fused_lm_head` was given; call this after it, on the same model.
    """
    use_fast_linears(model)
    use_fast_norms(model)
    fused = model.forward

    @functools.wraps(type(model).forward)
    def forward(self: PreTrainedModel, *args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        given = {name: value for name, value in kwargs.items() if value is not None}  # PEFT names what it has not
        if fused_lm_head and not args and given.keys() <= _READ and packs(self):
            batch = Labelled.of(given["input_ids"], given.get("attention_mask"), given["labels"])
            if batch is not None:
                return _score(self, batch, outputs, temperature, given.get("num_items_in_batch"))
        return fused(*args, fused_lm_head=fused_lm_head, **kwargs)

    model.forward = MethodType(forward, model)


class Labelled(NamedTuple):
    """Those of B rows of up to L tokens that have labels, longest first, moved to the left edge; M labels in all.

    ids (R, L); rows, positions, targets (M,): row, place in it and label of each labelled token, row by row; shape
    (B, L - 1) and where: of what TRL returns, and where in it each labelled token stands, (M,) twice.
    """

    ids: Tensor
    rows: Tensor
    positions: Tensor
    targets: Tensor
    shape: torch.Size
    where: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, ids: Tensor, mask: Tensor | None, labels: Tensor) -> Self | None:
        """None if a row is not one run of tokens, or a label has no token before it; or without any label."""
        inside = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
        labelled = labels[:, 1:] != -100
        start = inside.long().argmax(1, keepdim=True)  # (B, 1)
        columns = torch.arange(ids.shape[1], device=ids.device)
        run = (columns >= start) & (columns < start + inside.sum(1, keepdim=True))
        if bool((run != inside).any()) or bool((labelled & ~(inside[:, :-1] & inside[:, 1:])).any()):
            return None
        lengths = (labelled * (columns[1:] - start)).amax(1)  # (B,): a row is read up to its last label
        order = lengths.argsort(descending=True, stable=True)[: int((lengths > 0).sum())]
        if not len(order):
            return None
        rows, before = labelled[order].nonzero(as_tuple=True)
        start = start[order]
        return cls(
            ids=ids[order].gather(1, (columns + start).clamp(max=ids.shape[1] - 1)),
            rows=rows,
            positions=before + 1 - start.squeeze(1)[rows],
            targets=labels[order, 1:][rows, before],
            shape=labelled.shape,
            where=(order[rows], before),
        )


def _score(
    model: PreTrainedModel, batch: Labelled, outputs: Collection[str], temperature: float, items: int | Tensor | None
) -> Any:
    """The result of TRL's fused forward."""
    from trl.trainer.utils import FusedCausalLMOutput

    parts: dict[str, list[Tensor]] = {}
    for first in range(0, len(batch.ids), ROWS):
        begin, end = torch.searchsorted(batch.rows, torch.tensor([first, first + ROWS])).tolist()
        layout = Layout.of(
            batch.ids[first : first + ROWS], batch.rows[begin:end] - first, batch.positions[begin:end], packed=True
        )
        logits = completion_logits(model, layout, direct=True).float()
        logits = logits if temperature == 1 else logits / temperature
        for name, values in _figures(logits, batch.targets[begin:end], outputs).items():
            parts.setdefault(name, []).append(values)
    parts["label_mask"] = [torch.ones_like(batch.rows, dtype=torch.bool)]
    found = {}
    for name in parts:
        flat = torch.cat(parts[name])
        found[name] = flat.new_zeros(batch.shape).index_put(batch.where, flat)
    loss = -found["log_probs"].sum() / (len(batch.rows) if items is None else items)
    return FusedCausalLMOutput(loss=loss, **found)


def _figures(logits: Tensor, targets: Tensor, outputs: Collection[str]) -> dict[str, Tensor]:
    """Each (M,), of logits (M, V); as in TRL, gradients flow through log-probabilities and entropies alone."""
    found: dict[str, Tensor] = {}
    if "entropy" in outputs:
        found["log_probs"], found["entropy"] = logps_and_entropies(logits, targets)
    else:
        found["log_probs"] = target_logps(logits, targets)
    logits = logits.detach()
    if "mean_logits" in outputs:
        found["mean_logits"] = logits.mean(1)
    if "is_top1" in outputs:
        found["is_top1"] = logits.argmax(1) == targets
    if "log_sum_sq_probs" in outputs:
        found["log_sum_sq_probs"] = (2 * logits.log_softmax(1)).logsumexp(1)
    return found
