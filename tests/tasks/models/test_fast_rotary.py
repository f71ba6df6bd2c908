from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.cohere import modeling_cohere
from transformers.models.llama import modeling_llama
from transformers.models.qwen3 import modeling_qwen3

from plumbline.tasks.models import fast_rotary
from tests.tasks.models.test_packing import make_qwen3


def drawn(heads: int, *, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries of `heads` heads and keys of one, as transposed views; cosines and sines of 5 tokens."""
    torch.manual_seed(0)
    queries, keys = (torch.randn(2, 5, count, 8, dtype=dtype).transpose(1, 2) for count in (heads, 1))
    angles = (torch.rand(2, 5, 4) * 6).repeat(1, 1, 2)
    return queries, keys, angles.cos().to(dtype), angles.sin().to(dtype)


@pytest.mark.parametrize("module", [modeling_qwen3, modeling_llama])
def test_outputs_and_gradients_equal_the_models_own(module: Any) -> None:
    queries, keys, cos, sin = drawn(heads=3)
    weights = [torch.randn_like(each) for each in (queries, keys)]
    found = []
    for rotary in (module.apply_rotary_pos_emb, fast_rotary._rotary):
        given = [each.clone().requires_grad_() for each in (queries, keys)]
        outputs = rotary(*given, cos, sin)
        sum((output * weight).sum() for output, weight in zip(outputs, weights, strict=True)).backward()
        found.append([*outputs, *(each.grad for each in given)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


def test_a_quarter_turn_by_hand() -> None:
    """cos 0, sin 1: (1, 2) becomes (-2, 1), and of output 1 alone the gradient is -1 of input 2."""
    queries = torch.tensor([[[[1.0, 2.0]]]], requires_grad=True)
    zero, one = torch.zeros(1, 1, 2), torch.ones(1, 1, 2)
    turned, _ = fast_rotary._rotary(queries, queries, zero, one)
    assert turned.flatten().tolist() == [-2.0, 1.0]
    (gradient,) = torch.autograd.grad(turned[..., 0].sum(), queries)
    assert gradient.flatten().tolist() == [0.0, -1.0]


def test_halves_are_told_from_pairs() -> None:
    """Cohere turns neighbouring channels against each other."""
    assert fast_rotary.rotates_halves(modeling_llama.apply_rotary_pos_emb)
    assert not fast_rotary.rotates_halves(modeling_cohere.apply_rotary_pos_emb)
    assert not fast_rotary.rotates_halves(lambda queries, keys: (queries, keys))  # type: ignore[arg-type]


def test_it_is_exchanged_for_the_time_of_the_with_alone_and_for_float32_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    apply = fast_rotary._Rotation.apply
    monkeypatch.setattr(fast_rotary._Rotation, "apply", lambda *args: (calls.append(1), apply(*args))[1])
    own = modeling_qwen3.apply_rotary_pos_emb
    model = make_qwen3()
    with pytest.raises(ZeroDivisionError), fast_rotary.fast_rotary(model.model):
        calls.clear()  # of the probe
        model(input_ids=torch.tensor([[1, 2]]))
        assert len(calls) == 4  # queries and keys of two layers
        halves = modeling_qwen3.apply_rotary_pos_emb(*drawn(heads=1, dtype=torch.bfloat16))
        assert [each.dtype for each in halves] == [torch.bfloat16] * 2
        _ = 1 / 0
    assert modeling_qwen3.apply_rotary_pos_emb is own
    model(input_ids=torch.tensor([[1, 2]]))
    assert len(calls) == 4
