"""Rotary position embeddings in few passes, with an analytic gradient: float32 on CPU.

transformers computes x·cos + rotate_half(x)·sin with five passes over queries and keys and a temporary for each, and
autograd as many again on the way back. Written in place there are three, and the gradient is the rotation by -sin.

`apply_rotary_pos_emb` is a function of each modeling module, found there by name when attention runs, so it is
exchanged for the time of a `with` alone: other models of the process compute what they always did. The naive equivalent
is that function; a test compares both, gradients included. Functions that rotate otherwise (interleaved pairs)
are found by a probe and left alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

PROBE_TOLERANCE = 1e-5
"""Largest difference of float32 outputs, of inputs of magnitude 1, for a function to count as this rotation."""

_NAME = "apply_rotary_pos_emb"

Rotary = Callable[..., tuple[Tensor, Tensor]]


@contextmanager
def fast_rotary(blocks: nn.Module) -> Iterator[None]:
    """Let the transformer `blocks` rotate queries and keys by the function of this module, where it gives the same."""
    module: Any = sys.modules[type(blocks).__module__]
    own: Rotary | None = getattr(module, _NAME, None)
    if own is None or not rotates_halves(own):
        yield
        return
    setattr(module, _NAME, _rotary_or(own))
    try:
        yield
    finally:
        setattr(module, _NAME, own)


@cache
@torch.no_grad()
def rotates_halves(own: Rotary) -> bool:
    """True if a model's function turns the first half of the channels against the second, found by a probe."""
    numbers = torch.linspace(-1, 1, 2 * 2 * 3 * 4).view(2, 1, 2, 3, 4)  # queries and keys (1, heads, tokens, channels)
    angles = torch.linspace(0, 3, 3 * 4).view(1, 3, 4)
    try:
        expected = own(*numbers, angles.cos(), angles.sin())
    except (TypeError, RuntimeError):  # other arguments, other shapes
        return False
    found = _rotary(numbers[0], numbers[1], angles.cos(), angles.sin())
    pairs = zip(expected, found, strict=True)
    return all(one.shape == other.shape and bool((one - other).abs().max() <= PROBE_TOLERANCE) for one, other in pairs)


@cache
def _rotary_or(own: Rotary) -> Rotary:
    """The rotation of this module for float32 on CPU, a model's own for everything else."""

    def rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
        plain = all(each.dtype == torch.float32 and each.device.type == "cpu" for each in (q, k, cos, sin))
        return (_rotary if plain else own)(q, k, cos, sin, unsqueeze_dim)

    return rotary


def _rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return _Rotation.apply(q, cos, sin), _Rotation.apply(k, cos, sin)  # type: ignore[no-untyped-call]


class _Rotation(torch.autograd.Function):
    """y = (x₁·cos₁ - x₂·sin₁, x₂·cos₂ + x₁·sin₂) for the halves x₁, x₂ of the channels.

    Transposed, dL/dx = (g₁·cos₁ + g₂·sin₂, g₂·cos₂ - g₁·sin₁); in every rotation sin₁ = sin₂.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        first, second = sin.chunk(2, dim=-1)
        return _rotated(values, cos, first, second, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        first, second = sin.chunk(2, dim=-1)
        return _rotated(gradient, cos, second, first, 1), None, None


def _rotated(values: Tensor, cos: Tensor, to_first: Tensor, to_second: Tensor, sign: int) -> Tensor:
    """Values · cos, plus sign · second half · to_first in the first half, minus sign · first half · to_second."""
    first, second = values.chunk(2, dim=-1)
    whole = values * cos
    half = whole.shape[-1] // 2
    whole[..., :half].addcmul_(second, to_first, value=sign)
    whole[..., half:].addcmul_(first, to_second, value=-sign)
    return whole
