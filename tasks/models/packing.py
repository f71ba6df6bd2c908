"""Forward passes without padding: sequences of different lengths laid end to end in one row.

The naive equivalent (rows padded on the right to the longest, the whole grid computed) stands in the tests and gives
the same hidden states and gradients. What is done differently here:

1. every linear layer, norm and activation runs on the N real tokens, as one row of N; rotary and absolute positions
   follow `position_ids`;
2. attention alone sees rows: queries, keys and values are put into padded grids of a few rows each, where the causal
   rule hides the padding on the right (so no mask is needed), and its output is taken back;
3. nothing looks at a token behind the last attention but that token itself, so the last feed-forward layer runs only
   where a hidden state is wanted.

This reaches into models through the attention function that transformers lets one register and a hook on one module,
so it works for every causal model that takes registered functions (`can_pack`). Not covered: sliding windows,
activation checkpointing (which would run the forward again outside of the registered function), encoder-decoders.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tasks.models.fast_rotary import fast_rotary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION = "plumbline_packed"
"""Name under which the attention of packed rows is registered with transformers."""

PROBE_TOLERANCE = 1e-4
"""Largest difference of float32 hidden states, relative to their largest, for packing to count as exact."""


GRID_ROWS = 16
"""Rows of one attention grid. Neighbours are of similar length where rows are sorted: on CPU, 16 of 64 sorted rows a
grid took 5 % off the time of an update over one grid of 64, and 8 no more than that."""


@dataclass(frozen=True, slots=True)
class Packing:
    """B sequences laid end to end: N tokens in all.

    ids and positions (1, N): token ids, and the place of each in its own sequence. starts (B,): where each sequence
    begins among the N. What attention sees are grids of rows x width cells, some neighbouring sequences each, one grid
    behind the other: grids names their shapes, cells (N,) the cell of each token.
    """

    ids: Tensor
    positions: Tensor
    starts: Tensor
    grids: tuple[tuple[int, int], ...]
    cells: Tensor

    def places(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Index among the N tokens (M,) of given rows (M,) and positions in them (M,)."""
        return self.starts[rows] + positions


def pack(ids: Tensor, lengths: Tensor) -> Packing:
    """Pack the first `lengths` (B,) tokens of each row of `ids` (B, L), padded on the right."""
    columns = torch.arange(ids.shape[1], device=ids.device)
    real = columns < lengths.unsqueeze(1)  # (B, L)
    widths = [int(part.max()) for part in torch.split(lengths, GRID_ROWS)]
    laid = [part[:, :width] for part, width in zip(torch.split(real, GRID_ROWS), widths, strict=True)]
    return Packing(
        ids=ids[real].unsqueeze(0),
        positions=columns.expand_as(real)[real].unsqueeze(0),
        starts=lengths.cumsum(0) - lengths,
        grids=tuple((len(part), width) for part, width in zip(laid, widths, strict=True)),
        cells=torch.cat([part.flatten() for part in laid]).nonzero().squeeze(1),
    )


def hidden_states(blocks: nn.Module, packing: Packing, places: Tensor) -> Tensor:
    """Last hidden states (M, H) of the tokens at `places` (M,), each of them named once.

    `blocks` are those of a model that `can_pack` accepts.
    """
    with _packed_attention(blocks), _last_feed_forward_at(blocks, places), fast_rotary(blocks):
        output = blocks(input_ids=packing.ids, position_ids=packing.positions, use_cache=False, packing=packing)
    return take(output.last_hidden_state[0], places)


def backbone(model: PreTrainedModel) -> nn.Module:
    """The transformer blocks under a model's head; a model without a head is its own."""
    blocks: nn.Module = getattr(model, model.base_model_prefix, model)
    return blocks


@torch.no_grad()
def can_pack(model: PreTrainedModel) -> bool:
    """Whether packing gives this model's own hidden states, found by a probe of two short sequences."""
    config = model.config.get_text_config()
    windows = {kind for kind in getattr(config, "layer_types", None) or () if kind != "full_attention"}
    if windows or config._attn_implementation != "sdpa" or not getattr(model, "_supports_attention_backend", False):
        return False
    blocks = backbone(model)
    device = next(model.parameters()).device
    ids = torch.tensor([[0, 1, 2, 3], [2, 1, 0, 0]], device=device)
    lengths = torch.tensor([4, 2], device=device)
    places = torch.tensor([1, 3, 5], device=device)
    was_training = model.training
    model.eval()
    try:
        rows = [blocks(input_ids=row[None, :length], use_cache=False) for row, length in zip(ids, lengths, strict=True)]
        naive = torch.cat([row.last_hidden_state[0] for row in rows])[places]
        packed = hidden_states(blocks, pack(ids, lengths), places)
    except TypeError:  # its forward hands no further arguments down to attention, or its feed-forward gives no tensor
        return False
    finally:
        model.train(was_training)
    # rounding of a half-precision model is far above the tolerance for float32
    tolerance = max(PROBE_TOLERANCE, 4 * torch.finfo(naive.dtype).eps)
    return bool((naive - packed).abs().max() <= tolerance * naive.abs().max())


def take(values: Tensor, index: Tensor) -> Tensor:
    """Rows (M, C) of `values` (N, C) at `index` (M,), none named twice: then the gradient is a copy, not a sum."""
    taken: Tensor = _Take.apply(values, index)  # type: ignore[no-untyped-call]
    return taken


def put(values: Tensor, index: Tensor, size: int) -> Tensor:
    """The inverse of `take`: (size, C), zero but for `values` (M, C) at `index` (M,), none named twice."""
    whole: Tensor = _Put.apply(values, index, size)  # type: ignore[no-untyped-call]
    return whole


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.size = len(values)
        return values.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return _scattered(gradient, index, ctx.size), None


class _Put(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(index)
        return _scattered(values, index, size)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        return gradient.index_select(0, index), None, None


def _scattered(values: Tensor, index: Tensor, size: int) -> Tensor:
    return values.new_zeros((size, *values.shape[1:])).index_copy_(0, index, values)


@contextmanager
def _packed_attention(model: nn.Module) -> Iterator[None]:
    """Switch a model to the attention of packed rows, and back."""
    _register()
    config = model.config.get_text_config()  # type: ignore[union-attr, operator]
    before = config._attn_implementation
    config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = before


@contextmanager
def _last_feed_forward_at(blocks: nn.Module, places: Tensor) -> Iterator[None]:
    """Let the last layer's `mlp` see the tokens at `places` (M,) only; it adds nothing to the others."""
    layers = getattr(blocks, "layers", None)
    last = getattr(layers[-1], "mlp", None) if isinstance(layers, nn.ModuleList) else None
    if last is None:
        yield
        return
    size = 0

    def narrow(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        nonlocal size
        size = inputs[0].shape[1]
        return (take(inputs[0][0], places).unsqueeze(0), *inputs[1:])

    def widen(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not isinstance(output, Tensor):
            raise TypeError(f"Expected a tensor from a feed-forward layer, found {type(output).__name__}.")
        return put(output[0], places, size).unsqueeze(0)

    handles = [last.register_forward_pre_hook(narrow), last.register_forward_hook(widen)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@cache
def _register() -> None:
    from transformers import AttentionInterface

    # no mask function is registered under the name, so transformers builds no mask
    AttentionInterface.register(ATTENTION, _attend)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: Packing,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention of packed rows: query (1, heads, N, D), keys and values alike, to (1, N, heads, D)."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    # (1, heads, N, D) to (rows, heads, width, D) a grid, zero where there is no token
    padded = [_padded(states[0].transpose(0, 1), packing) for states in (query, key, value)]
    outputs = []
    for states in zip(*padded, strict=True):
        output, _weights = sdpa_attention_forward(
            module, *states, attention_mask=None, dropout=dropout, scaling=scaling, is_causal=True
        )  # (rows, width, heads, D)
        outputs.append(output.flatten(0, 1).flatten(1))
    return take(torch.cat(outputs), packing.cells).view(1, -1, *query.shape[1::2]), None


def _padded(states: Tensor, packing: Packing) -> list[Tensor]:
    """(N, heads, D) to (rows, heads, width, D) a grid."""
    sizes = [rows * width for rows, width in packing.grids]
    parts = torch.split(put(states.flatten(1), packing.cells, sum(sizes)), sizes)
    return [
        part.view(*shape, *states.shape[1:]).transpose(1, 2) for part, shape in zip(parts, packing.grids, strict=True)
    ]
