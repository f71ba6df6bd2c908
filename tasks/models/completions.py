"""States and logits that predict the tokens of responses, and no others.

1. Sequences are packed end to end, so no padding is computed, and what several prompts begin with is computed once
   (`packing`; found by a probe where a model takes it). Otherwise they are padded on the right and no attention mask is
   passed: in a causal model no token sees what follows it.
2. The hidden states that predict response tokens are gathered first, and the vocabulary head runs on those alone.
   Models that change logits behind the head (Gemma's soft-capping, Cohere's scale) are found by a probe, and their own
   forward is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from plumbline.tasks.models.packing import Packing, backbone, can_pack, hidden_states, pack, probing

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROBE_TOLERANCE = 1e-4
"""Largest difference of logits, relative to their largest, for the head to count as the last step of a model."""

_packable: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Layout:
    """A batch as policy, critic and reference read it, made once for all of them.

    ids (B, L), right-padded. rows, positions (M,) place the response tokens, row by row. packing: the rows without
    their padding, where models take it, and what prompts begin with once; each is read up to the token before its last
    response token, since nothing looks back from what is left out.
    """

    ids: Tensor
    rows: Tensor
    positions: Tensor
    packing: Packing | None

    @classmethod
    def of(cls, ids: Tensor, rows: Tensor, positions: Tensor, *, packed: bool) -> Self:
        """The layout of ids (B, L) with response tokens at rows, positions (M,): every row has one, and rows ascend."""
        if not packed:
            return cls(ids, rows, positions, None)
        every = torch.arange(len(ids), device=ids.device)
        first, behind = torch.searchsorted(rows, every), torch.searchsorted(rows, every, right=True)  # (B,)
        # states are wanted from the token before the first response token on
        return cls(ids, rows, positions, pack(ids, positions[behind - 1], positions[first] - 1))


def located(
    ids: torch.Tensor, prompt_lengths: torch.Tensor, lengths: torch.Tensor, mask: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Ids (B, longest), and for each of the M response tokens its row, position and id, each (M,), row by row."""
    rows, steps = mask.nonzero(as_tuple=True)
    positions = prompt_lengths[rows] + steps
    return {
        "ids": ids[:, : int(lengths.max())],
        "rows": rows,
        "positions": positions,
        "targets": ids[rows, positions],
    }


def completion_logits(policy: PreTrainedModel, layout: Layout, *, direct: bool) -> Tensor:
    """Logits (M, V) that predict each response token: those one position before it."""
    inner = unadapted(policy)
    if not direct:
        logits: Tensor = inner(input_ids=layout.ids, use_cache=False).logits
        return logits[layout.rows, layout.positions - 1]
    chosen: Tensor = inner.get_output_embeddings()(completion_states(backbone(inner), layout))
    return chosen


def completion_states(blocks: nn.Module, layout: Layout) -> Tensor:
    """Last hidden states (M, H) one position before each response token."""
    before = layout.positions - 1
    if layout.packing is not None:
        return hidden_states(blocks, layout.packing, layout.packing.places(layout.rows, before))
    hidden: Tensor = blocks(input_ids=layout.ids, use_cache=False).last_hidden_state  # (B, L, H)
    return hidden[layout.rows, before]


def unadapted(model: PreTrainedModel) -> PreTrainedModel:
    """The model under its adapters, whose layers stay in place."""
    return model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model


def head_is_last(policy: PreTrainedModel) -> bool:
    """True if logits are the output head on the last hidden state and nothing more, found by a probe of two tokens.

    The forward that is probed is that of the model's class, in its own precision: what a trainer puts around it on the
    instance (autocast, a fused head) must not decide.
    """
    inner = unadapted(policy)
    if inner.get_output_embeddings() is None or not hasattr(inner, inner.base_model_prefix):
        return False
    ids = torch.tensor([[0, 1]], device=inner.device)
    with probing(inner):
        whole = type(inner).forward(inner, input_ids=ids, use_cache=False).logits.float()
        hidden = backbone(inner)(input_ids=ids, use_cache=False).last_hidden_state
        direct = inner.get_output_embeddings()(hidden).float()
    return whole.shape == direct.shape and bool((whole - direct).abs().max() <= PROBE_TOLERANCE * whole.abs().max())


def packs(model: PreTrainedModel) -> bool:
    """True if a model, as it is now, can be packed, on CPU in float32, its head being its last step.

    Found by probes, once a model. Not in training with dropout on: what two rows share, they would share with its gaps.
    """
    if model.device.type != "cpu" or model.dtype != torch.float32 or model.is_activation_checkpointing:
        return False
    if model not in _packable:
        routed = getattr(model.config.get_text_config(), "output_router_logits", False)
        _packable[model] = not routed and can_pack(model) and head_is_last(model)
    return _packable[model] and not (model.training and _thins(model))


def _thins(model: PreTrainedModel) -> bool:
    """True if any dropout is on, in modules or in the rates that attention functions read."""
    return any(
        value > 0
        for each in model.modules()
        for name, value in vars(each).items()
        if isinstance(value, float) and ("dropout" in name or (name == "p" and isinstance(each, nn.Dropout)))
    )
