"""Forward passes without padding: sequences of different lengths laid end to end in one row.

The naive equivalent (rows padded on the right to the longest, the whole grid computed) stands in the tests and gives
the same hidden states and gradients. What is done differently here:

1. every linear layer, norm and activation runs on the N real tokens, as one row of N; rotary and absolute positions
   follow `position_ids`;
2. what several sequences begin with (a system prompt, the same prompt again) is one set of tokens among the N: in a
   causal model the states of a beginning do not depend on what follows it;
3. attention alone sees rows: queries, keys and values are shown in padded grids of a few rows each, where the causal
   rule hides the padding on the right (so no mask is needed), and its output is taken back;
4. nothing looks at a token behind the last attention but that token itself, so all that follows it (output projection,
   norms, feed-forward) runs only where a hidden state is wanted.

This reaches into models through the attention function that transformers lets one register, so it works for every
causal model that takes registered functions (`can_pack`); the last layer is exchanged where it is put together as most
are (`ends_plainly`), and else computed whole. Not covered: sliding windows, activation checkpointing (which would run
the forward again outside of the registered function), encoder-decoders, two threads in one model at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from plumbline.tasks.models.fast_rotary import fast_rotary

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

ATTENTION = "plumbline_packed"
"""Name under which the attention of packed rows is registered with transformers."""

PROBE_TOLERANCE = 1e-4
"""Largest difference of float32 hidden states, relative to their largest, for packing to count as exact."""


GRID_ROWS = 16
"""Rows of one attention grid. Neighbours are of similar length where rows are sorted: on CPU, 16 of 64 sorted rows a
grid took 5 % off the time of an update over one grid of 64, and 8 no more than that."""


_PARTS = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")
"""The parts of a last layer that `_tail_at` can put together."""

_plain_ends: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Packing:
    """B sequences of up to L tokens laid end to end, common beginnings once: N tokens in all.

    ids and positions (1, N): token ids, and the place of each in its own sequence. tokens (B, L): which of the N stands
    at each position of each sequence, 0 behind its end. starts (B,): a sequence's token at position p is the
    (starts + p)-th of the N, for every p behind what it shares with a sequence before it.

    What attention sees are grids of rows x width cells, some neighbouring sequences each, one grid behind the other, C
    cells in all: grids names their shapes, shown (C,) the token in each cell, any token where a row has ended. cells
    (N,) names one cell of each token; repeated, the cells (R,) that show a token once more, and those tokens (R,).
    """

    ids: Tensor
    positions: Tensor
    tokens: Tensor
    starts: Tensor
    grids: tuple[tuple[int, int], ...]
    shown: Tensor
    cells: Tensor
    repeated: tuple[Tensor, Tensor] | None

    def places(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Index among the N tokens (M,) of given rows (M,) and positions in them (M,), none of them shared."""
        return self.starts[rows] + positions


def pack(ids: Tensor, lengths: Tensor, shareable: Tensor) -> Packing:
    """Pack the first `lengths` (B,) tokens of each row of `ids` (B, L), padded on the right.

    Of its first `shareable` (B,) tokens a row shares those with which another row begins as well. Where a hidden state
    is wanted, or an id does not tell all of a token, nothing may be shared.
    """
    count, columns = len(ids), torch.arange(ids.shape[1], device=ids.device)
    real = columns < lengths.unsqueeze(1)  # (B, L)
    owners = _owners(ids, torch.minimum(shareable, lengths))  # (B, L)
    own = real & (owners == torch.arange(count, device=ids.device).unsqueeze(1))
    counts = own.sum(1)
    starts = counts.cumsum(0) - lengths  # what a row shares is its beginning, so its own tokens end where it ends
    tokens = torch.where(real, starts[owners] + columns, 0)
    spans = [slice(start, start + GRID_ROWS) for start in range(0, count, GRID_ROWS)]
    widths = [int(lengths[span].max()) for span in spans]

    def cut(cells: Tensor) -> Tensor:
        return torch.cat([cells[span, :width].flatten() for span, width in zip(spans, widths, strict=True)])

    shown, repeated = cut(tokens), cut(real & ~own).nonzero().squeeze(1)
    return Packing(
        ids=ids[own].unsqueeze(0),
        positions=columns.expand_as(own)[own].unsqueeze(0),
        tokens=tokens,
        starts=starts,
        grids=tuple((len(lengths[span]), width) for span, width in zip(spans, widths, strict=True)),
        shown=shown,
        cells=cut(own).nonzero().squeeze(1),
        repeated=(repeated, shown[repeated]) if len(repeated) else None,
    )


def _owners(ids: Tensor, shareable: Tensor) -> Tensor:
    """Of each token of ids (B, L), the row (B, L) of which it is taken: its own, or one with the same beginning.

    Rows with the same beginning are neighbours in the order of a dictionary, where the first of them owns it.
    """
    columns = torch.arange(ids.shape[1], device=ids.device)
    beginnings = ids.masked_fill(columns >= shareable.unsqueeze(1), -1)
    rows = beginnings.tolist()
    order = torch.tensor(sorted(range(len(rows)), key=rows.__getitem__), device=ids.device)
    laid = beginnings[order]
    alike = (laid[1:] == laid[:-1]) & (laid[1:] >= 0)
    alike = alike.long().cumprod(1).bool()  # up to the first token that differs
    first = torch.arange(len(rows), device=ids.device).unsqueeze(1).repeat(1, ids.shape[1])
    first[1:].masked_fill_(alike, 0)
    owners = torch.empty_like(first)
    owners[order] = order[first.cummax(0).values]
    return owners


def hidden_states(blocks: nn.Module, packing: Packing, places: Tensor, cache: Cache | None = None) -> Tensor:
    """Last hidden states (M, H) of the tokens at `places` (M,), each of them named once.

    `blocks` are those of a model that `can_pack` accepts. Keys and values go into `cache`, if there is one, row by row.
    """
    narrow = ends_plainly(blocks)
    states = _run(blocks, packing, cache, _tail_at(blocks, places) if narrow else nullcontext())
    return states if narrow else take(states, places)


@torch.no_grad()
def prefill(blocks: nn.Module, ids: Tensor, lengths: Tensor, cache: Cache) -> Tensor:
    """Last hidden states (B, H) behind the first `lengths` (B,) tokens of rows `ids` (B, L), padded on the right.

    Keys and values (B, heads, L, D) of each layer go into `cache`, row by row; behind the end of a row they are another
    token's, so that a mask has to hide them.
    """
    packing = pack(ids, lengths, lengths - 1)
    return hidden_states(blocks, packing, packing.starts + lengths - 1, cache)


def _run(blocks: nn.Module, packing: Packing, cache: Cache | None, tail: AbstractContextManager[None]) -> Tensor:
    """Last hidden states (N, H), or of the tokens that `tail` leaves."""
    with _packed_attention(blocks), tail, fast_rotary(blocks):
        output = blocks(
            input_ids=packing.ids, position_ids=packing.positions, use_cache=False, packing=packing, filled=cache
        )
    states: Tensor = output.last_hidden_state[0]
    return states


def backbone(model: PreTrainedModel) -> nn.Module:
    """The transformer blocks under a model's head; a model without a head is its own."""
    blocks: nn.Module = getattr(model, model.base_model_prefix, model)
    return blocks


def attends_plainly(model: PreTrainedModel) -> bool:
    """True if every layer sees all tokens before it, by a registered function that takes a bool mask (SDPA)."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    windows = set(kinds) - {"full_attention"} if kinds else getattr(config, "sliding_window", None)
    registered = getattr(model, "_supports_attention_backend", False)
    return not windows and bool(registered) and config._attn_implementation == "sdpa"


@contextmanager
def probing(model: nn.Module) -> Iterator[None]:
    """Ask a model something in eval mode, in its own precision and without gradients, whatever is around."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(next(model.parameters()).device.type, enabled=False):
            yield
    finally:
        model.train(was_training)


def can_pack(model: PreTrainedModel) -> bool:
    """True if packing gives this model's own hidden states, found by a probe of three short sequences."""
    if not attends_plainly(model):
        return False
    blocks = backbone(model)
    device = next(model.parameters()).device
    ids = torch.tensor([[0, 1, 2, 3], [0, 1, 0, 0], [2, 1, 0, 0]], device=device)
    lengths = torch.tensor([4, 3, 2], device=device)
    packing = pack(ids, lengths, lengths - 1)
    pairs = zip(ids, lengths, strict=True)
    try:
        with probing(model):
            rows = [blocks(input_ids=row[None, :length], use_cache=False) for row, length in pairs]
            packed = hidden_states(blocks, packing, packing.starts + lengths - 1)
    except TypeError:  # its forward hands no further arguments down to attention
        return False
    return _close(packed, torch.stack([row.last_hidden_state[0, -1] for row in rows]))


def take(values: Tensor, index: Tensor) -> Tensor:
    """Rows (M, C) of `values` (N, C) at `index` (M,), none named twice: then the gradient is a copy, not a sum."""
    taken: Tensor = _Take.apply(values, index)  # type: ignore[no-untyped-call]
    return taken


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.size = len(values)
        return values.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return gradient.new_zeros((ctx.size, *gradient.shape[1:])).index_copy_(0, index, gradient), None


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


def ends_plainly(blocks: nn.Module) -> bool:
    """True if the last layer is what `_tail_at` takes it for, found by a probe of three tokens, once a model."""
    if blocks not in _plain_ends:
        layers = getattr(blocks, "layers", None)
        last = layers[-1] if isinstance(layers, nn.ModuleList) else None
        # a forward of its own in place of its class's, as accelerate's offloading sets one, stays as it is
        known = all(hasattr(last, name) for name in _PARTS) and "forward" not in vars(last)
        _plain_ends[blocks] = known and _same_at_the_end(blocks)
    return _plain_ends[blocks]


def _same_at_the_end(blocks: nn.Module) -> bool:
    device = next(blocks.parameters()).device
    length = torch.tensor([3], device=device)
    packing = pack(torch.tensor([[0, 1, 2]], device=device), length, length)
    places = torch.tensor([2, 0], device=device)
    try:
        with probing(blocks):
            whole = _run(blocks, packing, None, nullcontext())[places]
            narrow = _run(blocks, packing, None, _tail_at(blocks, places))
    except (TypeError, AttributeError):  # layers of the same names, put together otherwise
        return False
    return whole.shape == narrow.shape and _close(narrow, whole)


def _close(found: Tensor, expected: Tensor) -> bool:
    # rounding of a half-precision model is far above the tolerance for float32
    tolerance = max(PROBE_TOLERANCE, 4 * torch.finfo(expected.dtype).eps)
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


@contextmanager
def _tail_at(blocks: nn.Module, places: Tensor) -> Iterator[None]:
    """Let the last layer, behind its attention, and what follows it see the tokens at `places` (M,) only.

    Naive equivalent: the layer's own forward, h + mlp(norm(h)) with h = x + attention(norm(x)), as in Llama, Mistral,
    Qwen and their like.
    """
    layer: Any = blocks.layers[-1]  # type: ignore[index]

    def narrowed(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (take(inputs[0][0], places).unsqueeze(0), *inputs[1:])

    def forward(hidden_states: Tensor, **arguments: Any) -> Tensor:
        attended, _ = layer.self_attn(hidden_states=layer.input_layernorm(hidden_states), **arguments)
        hidden = take(hidden_states[0], places).unsqueeze(0) + attended
        passed: Tensor = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return passed

    handle = layer.self_attn.o_proj.register_forward_pre_hook(narrowed)
    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward
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
    filled: Cache | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention of packed rows: query (1, heads, N, D), keys and values alike, to (1, N, heads, D)."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if filled is not None:
        filled.update(*(_by_row(states[0], packing.tokens) for states in (key, value)), module.layer_idx)
    # (1, heads, N, D) to (rows, heads, width, D) a grid; a query's output is read in one cell, so it has no gradient
    # in others
    laid = [
        _in_grids(states[0].transpose(0, 1), packing, packing.repeated if seen_by_all else None)
        for states, seen_by_all in ((query, False), (key, True), (value, True))
    ]
    outputs = []
    for states in zip(*laid, strict=True):
        output, _weights = sdpa_attention_forward(
            module, *states, attention_mask=None, dropout=dropout, scaling=scaling, is_causal=True
        )  # (rows, width, heads, D)
        outputs.append(output.flatten(0, 1).flatten(1))
    return take(torch.cat(outputs), packing.cells).view(1, -1, *query.shape[1::2]), None


def _by_row(states: Tensor, tokens: Tensor) -> Tensor:
    """States (heads, N, D) of the tokens (B, L): (B, heads, L, D)."""
    flat = states.transpose(0, 1).flatten(1)  # (N, heads · D)
    return flat.index_select(0, tokens.flatten()).view(*tokens.shape, len(states), -1).transpose(1, 2)


def _in_grids(states: Tensor, packing: Packing, repeated: tuple[Tensor, Tensor] | None) -> list[Tensor]:
    """(N, heads, D) to (rows, heads, width, D) a grid."""
    cells: Tensor = _Shown.apply(states.flatten(1), packing.shown, packing.cells, repeated)  # type: ignore[no-untyped-call]
    parts = torch.split(cells, [rows * width for rows, width in packing.grids])
    return [
        part.view(*shape, *states.shape[1:]).transpose(1, 2) for part, shape in zip(parts, packing.grids, strict=True)
    ]


class _Shown(torch.autograd.Function):
    """Tokens (N, C) in the cells that show them: a token's gradient is that of its cell, and of the repeated ones."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, shown: Tensor, cells: Tensor, repeated: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        ctx.save_for_backward(cells, *(repeated or ()))
        return values.index_select(0, shown)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        cells, *repeated = ctx.saved_tensors
        whole = gradient.index_select(0, cells)
        if repeated:
            again, tokens = repeated
            whole.index_add_(0, tokens, gradient.index_select(0, again))
        return whole, None, None, None
