from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from plumbline.tasks.models import fast_linear

ONEDNN_IS_FASTER = fast_linear.onednn_is_faster


@pytest.fixture(autouse=True)
def everywhere(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """oneDNN counts as faster, whatever the machine, from 1,000 multiplications on; its calls are counted."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this build of torch has no oneDNN")
    calls: list[int] = []
    product = fast_linear._product

    def counted(*args: Any) -> torch.Tensor:
        calls.append(1)
        return product(*args)

    monkeypatch.setattr(fast_linear, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(fast_linear, "LEAST_WORK", 1000)
    monkeypatch.setattr(fast_linear, "_product", counted)
    return calls


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 40, 8), (5, 8, 8), (40, 8)])
def test_outputs_and_gradients_equal_torchs_own(shape: tuple[int, ...], bias: bool, everywhere: list[int]) -> None:
    """40 rows, 8 inputs, 12 outputs: 3,840 multiplications. One product forward, two backward."""
    torch.manual_seed(0)
    naive = nn.Linear(8, 12, bias=bias)
    fast = copy.deepcopy(naive)
    fast_linear.use_fast_linears(fast)
    values = torch.randn(shape)
    found = []
    for layer in (naive, fast):
        given = values.clone().requires_grad_()
        output = layer(given)
        output.square().sum().backward()
        found.append([output, given.grad, *(each.grad for each in layer.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-5)
    assert len(everywhere) == 3


def test_small_products_other_types_and_autocast_stay_with_torch(everywhere: list[int]) -> None:
    """2 rows x 8 x 12 = 192 multiplications are below the 1,000 of this test."""
    layer = nn.Linear(8, 12)
    fast_linear.use_fast_linears(layer)
    layer(torch.randn(2, 8))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(400, 8)).dtype == torch.bfloat16
    layer.double()(torch.randn(400, 8, dtype=torch.float64))
    assert everywhere == []


def test_a_copy_computes_with_its_own_weights(everywhere: list[int]) -> None:
    model = nn.Sequential(nn.Linear(8, 12))
    fast_linear.use_fast_linears(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin[0].weight.zero_()
        twin[0].bias.zero_()
    values = torch.randn(400, 8)
    assert not twin(values).any()
    assert model(values).any()
    assert everywhere


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A processor of the kind on which oneDNN is faster; what was found of this one is forgotten."""
    monkeypatch.setattr(fast_linear, "onednn_is_faster", ONEDNN_IS_FASTER)
    monkeypatch.setattr(fast_linear, "_mkl_is_slow_here", lambda: True)
    ONEDNN_IS_FASTER.cache_clear()
    yield
    ONEDNN_IS_FASTER.cache_clear()


def test_a_torch_without_the_private_operation_keeps_its_own_linear(
    everywhere: list[int], fresh: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    layer = nn.Linear(8, 12)
    monkeypatch.setattr(fast_linear, "_OPERATION", "_an_operation_that_was_removed")
    with caplog.at_level(logging.WARNING):
        fast_linear.use_fast_linears(layer)
        fast_linear.use_fast_linears(layer)
    assert "forward" not in vars(layer)
    values = torch.randn(400, 8)
    assert torch.equal(layer(values), nn.functional.linear(values, layer.weight, layer.bias))
    assert everywhere == []
    (told,) = [record.getMessage() for record in caplog.records]
    assert "_an_operation_that_was_removed" in told


def test_a_torch_with_it_uses_it(everywhere: list[int], fresh: None, caplog: pytest.LogCaptureFixture) -> None:
    layer = nn.Linear(8, 12)
    fast_linear.use_fast_linears(layer)
    layer(torch.randn(400, 8))
    assert len(everywhere) == 1
    assert caplog.records == []


@pytest.mark.parametrize(
    ("vendor", "family", "slow"),
    [("AuthenticAMD", 26, True), ("AuthenticAMD", 25, False), ("GenuineIntel", 26, False)],
)
def test_only_amd_processors_from_zen_5_on_are_meant(vendor: str, family: int, slow: bool) -> None:
    facts = f"processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: 17\n"
    assert fast_linear._is_zen5_or_later(facts) is slow
