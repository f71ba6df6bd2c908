"""Linear layers by oneDNN where PyTorch's own choice, MKL, is slow: float32 on AMD processors from Zen 5 on.

MKL leaves AVX-512 alone on processors that are not Intel's. On a Zen 5 core it did 100 GFLOP/s where oneDNN, which is
part of PyTorch too, did 230, with the same float32 arithmetic in another order of summation. Zen 4, of half the
width, gave 77 against 85, and the dearer call ate the gain. The naive equivalent is
`torch.nn.functional.linear`; a test compares both, gradients included.

Which of the two computes a layer depends on the machine and on shapes alone, so a run on one machine stays bitwise
repeatable. Small products stay with MKL, where a call costs more than the arithmetic, and so does all under autocast.
"""

from __future__ import annotations

import logging
import re
from functools import cache
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

logger = logging.getLogger(__name__)

LEAST_WORK = 2**22
"""Fewest multiplications of a product for oneDNN, rows x inputs x outputs; below, a call costs more than it gains."""

_CPU_FACTS = Path("/proc/cpuinfo")
_ZEN5_FAMILY = 26  # AMD64 CPUID, family 1Ah; Zen 3 and 4 are 25
_OPERATION = "_linear_pointwise"


def use_fast_linears(model: nn.Module) -> None:
    """Let the linear layers of a model choose between oneDNN and MKL, on machines where oneDNN is faster."""
    if not onednn_is_faster():
        return
    for module in model.modules():
        if type(module) is nn.Linear:
            module.forward = MethodType(_forward, module)  # type: ignore[method-assign]


@cache
def onednn_is_faster() -> bool:
    """True if this is a machine as the module's docstring names it."""
    if not _mkl_is_slow_here():
        return False
    if not hasattr(torch.ops.mkldnn, _OPERATION):
        logger.warning(
            "torch %s has no torch.ops.mkldnn.%s, a private operation of the tested version: linear layers stay with "
            "torch.nn.functional.linear, which is about half as fast on this processor.",
            torch.__version__,
            _OPERATION,
        )
        return False
    return True


def _mkl_is_slow_here() -> bool:
    mkl = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return bool(mkl) and wide and _CPU_FACTS.is_file() and _is_zen5_or_later(_CPU_FACTS.read_text())


def _is_zen5_or_later(facts: str) -> bool:
    """True if `/proc/cpuinfo` speaks of an AMD processor of a family from Zen 5's on."""
    family = re.search(r"^cpu family\s*:\s*(\d+)", facts, re.MULTILINE)
    return "AuthenticAMD" in facts and family is not None and int(family[1]) >= _ZEN5_FAMILY


def _forward(self: nn.Linear, values: Tensor) -> Tensor:
    rows = values.numel() // self.in_features
    float32 = values.dtype == self.weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if not float32 or values.device.type != "cpu" or rows * self.in_features * self.out_features < LEAST_WORK:
        return functional.linear(values, self.weight, self.bias)
    product: Tensor = _Linear.apply(values, self.weight, self.bias)  # type: ignore[no-untyped-call]
    return product


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(values, weight)
        return _product(values, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        values, weight = ctx.saved_tensors
        flat = gradient.flatten(0, -2)  # (rows, outputs)
        wants_values, wants_weight, wants_bias = ctx.needs_input_grad
        return (
            _product(gradient, weight.t()) if wants_values else None,
            _product(flat.t(), values.flatten(0, -2).t()) if wants_weight else None,
            flat.sum(0) if wants_bias else None,
        )


def _product(values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Values (..., k) @ weight.T (k, n) + bias by oneDNN."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(values, weight, bias, "none", [], "")
    return product
