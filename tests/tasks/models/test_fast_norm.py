from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from plumbline.tasks.models import fast_norm


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the norms that take the analytic gradient."""
    found: list[int] = []
    apply = fast_norm._RMSNorm.apply

    def counted(*args: Any) -> Any:
        found.append(1)
        return apply(*args)

    monkeypatch.setattr(fast_norm._RMSNorm, "apply", counted)
    return found


def drawn(norm: nn.Module) -> nn.Module:
    """A norm with weights that are not all 1."""
    torch.manual_seed(0)
    with torch.no_grad():
        norm.weight.normal_(1, 0.3)
    return norm


@pytest.mark.parametrize("kind", [LlamaRMSNorm, Qwen3RMSNorm])
@pytest.mark.parametrize("shape", [(1, 40, 8), (40, 8), (1, 20, 2, 8)])
def test_outputs_and_gradients_equal_the_modules_own(kind: Any, shape: tuple[int, ...], calls: list[int]) -> None:
    naive = drawn(kind(8, eps=1e-5))
    fast = copy.deepcopy(naive)
    fast_norm.use_fast_norms(fast)
    values, weights = torch.randn(shape), torch.randn(shape)
    found = []
    for norm in (naive, fast):
        given = values.clone().requires_grad_()
        output = norm(given)
        (output * weights).sum().backward()
        found.append([output, given.grad, norm.weight.grad])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert len(calls) == 1


def test_memory_in_another_order_changes_nothing(calls: list[int]) -> None:
    """Values and gradient as transposed views, as heads of attention are."""
    norm = drawn(Qwen3RMSNorm(8))
    fast_norm.use_fast_norms(norm)
    values = torch.randn(3, 5, 8)
    found = []
    for given in (values.clone().requires_grad_(), values.transpose(0, 1).contiguous().requires_grad_()):
        view = given if given.shape[0] == 3 else given.transpose(0, 1)
        (gradient,) = torch.autograd.grad(norm(view).transpose(0, 1).square().cumsum(0).sum(), given)
        found.append(gradient if given.shape[0] == 3 else gradient.transpose(0, 1))
    torch.testing.assert_close(*found)
    assert len(calls) == 2


def test_a_gradient_by_hand() -> None:
    """x = (3, 4), w = 1, ε = 0: mean(x²) = 12.5, r = 0.282843, y = (0.848528, 1.131371).

    Of y₁ alone: dx = r·(g - x·r²·Σ(g·x)/2) = 0.282843 · (1 - 3·0.08·3/2, -4·0.08·3/2) = (0.181019, -0.135765), which
    stands at right angles to x, as scaling x changes nothing. dw = g·x·r = (0.848528, 0).
    """
    values = torch.tensor([[3.0, 4.0]], requires_grad=True)
    weight = torch.ones(2, requires_grad=True)
    output = fast_norm._RMSNorm.apply(values, weight, torch.tensor(0.0))
    inward, of_weight = torch.autograd.grad(output[0, 0], (values, weight))
    torch.testing.assert_close(output, torch.tensor([[0.848528, 1.131371]]))
    torch.testing.assert_close(inward, torch.tensor([[0.181019, -0.135765]]), atol=1e-5, rtol=0)
    torch.testing.assert_close(of_weight, torch.tensor([0.848528, 0.0]))


def test_other_norms_stay_as_they_are(calls: list[int]) -> None:
    class MeanRMSNorm(LlamaRMSNorm):  # type: ignore[misc]
        def forward(self, hidden_states: Tensor) -> Tensor:
            return hidden_states - hidden_states.mean(-1, keepdim=True)

    class GridRMSNorm(LlamaRMSNorm):  # type: ignore[misc]
        """One weight a head and channel, not one a channel."""

        def __init__(self) -> None:
            super().__init__(8)
            self.weight = nn.Parameter(torch.ones(4, 8))

    others = nn.ModuleList([drawn(GemmaRMSNorm(8)), MeanRMSNorm(8), GridRMSNorm(), nn.LayerNorm(8)])
    fast_norm.use_fast_norms(others)
    for norm in others:
        assert "forward" not in vars(norm)
        norm(torch.randn(4, 8))
    assert calls == []


def test_without_gradients_the_output_is_the_same_and_nothing_is_kept(calls: list[int]) -> None:
    norm = drawn(LlamaRMSNorm(8))
    fast_norm.use_fast_norms(norm)
    values = torch.randn(2, 4, 3, 8).transpose(1, 2)
    with_gradients = norm(values.clone().requires_grad_())
    with torch.no_grad():
        found = norm(values)
        torch.testing.assert_close(found, LlamaRMSNorm.forward(norm, values), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found, with_gradients, atol=1e-7, rtol=1e-6)
    assert len(calls) == 1


def test_in_other_types_the_module_itself_runs(calls: list[int]) -> None:
    norm = drawn(LlamaRMSNorm(8))
    fast_norm.use_fast_norms(norm)
    values = torch.randn(4, 8).bfloat16()
    assert torch.equal(norm(values), LlamaRMSNorm.forward(norm, values))
    assert calls == []


def test_a_copy_computes_with_its_own_weights(calls: list[int]) -> None:
    norm = drawn(LlamaRMSNorm(8))
    fast_norm.use_fast_norms(norm)
    twin = copy.deepcopy(norm)
    with torch.no_grad():
        twin.weight.zero_()
    values = torch.randn(4, 8)
    assert not twin(values).any()
    assert norm(values).any()
    assert len(calls) == 2
