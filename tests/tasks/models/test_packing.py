from __future__ import annotations

from typing import Any

import pytest
import torch

from tasks.models.packing import can_pack, hidden_states, pack, put, take

IDS = torch.tensor([[5, 6, 7, 8, 9], [4, 5, 0, 0, 0], [9, 8, 7, 0, 0]])
LENGTHS = torch.tensor([5, 2, 3])


def make_qwen3(key_value_heads: int = 2, **changed: Any) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    given = {"num_hidden_layers": 2, "max_position_embeddings": 64} | changed
    config = Qwen3Config(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=24,
        num_attention_heads=2,
        num_key_value_heads=key_value_heads,
        head_dim=8,
        initializer_range=0.5,
        **given,
    )
    return Qwen3ForCausalLM(config).eval()


def make_llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=16, initializer_range=0.5, **size)).eval()


def naive(model: Any) -> torch.Tensor:
    """A forward pass a sequence, hidden states end to end."""
    pairs = zip(IDS, LENGTHS, strict=True)
    return torch.cat([model.model(input_ids=row[None, :length]).last_hidden_state[0] for row, length in pairs])


@pytest.mark.parametrize("grid_rows", [16, 2])
@pytest.mark.parametrize("make", [make_qwen3, lambda: make_qwen3(key_value_heads=1), make_llama])
def test_hidden_states_and_gradients_equal_a_forward_a_sequence(
    make: Any, grid_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Places 0, 3, 5, 6 and 9 are the 1st and 4th token of row 0, both of row 1, and the last of row 2."""
    monkeypatch.setattr("tasks.models.packing.GRID_ROWS", grid_rows)
    model = make()
    packing = pack(IDS, LENGTHS)
    rows, positions = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([0, 3, 0, 1, 2])
    places = packing.places(rows, positions)
    assert places.tolist() == [0, 3, 5, 6, 9]
    assert can_pack(model)
    parameters = list(model.model.parameters())
    weights = torch.randn((5, 16), generator=torch.Generator().manual_seed(1))
    found = hidden_states(model.model, packing, places)
    expected = naive(model)[places]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    ours = torch.autograd.grad((found * weights).sum(), parameters)
    theirs = torch.autograd.grad((expected * weights).sum(), parameters)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_packing_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of 5 and 2 tokens in a grid of 2 x 5, row 1 from cell 5 on; the row of 3 in a grid behind those 10 cells."""
    monkeypatch.setattr("tasks.models.packing.GRID_ROWS", 2)
    packing = pack(IDS, LENGTHS)
    assert packing.ids.tolist() == [[5, 6, 7, 8, 9, 4, 5, 9, 8, 7]]
    assert packing.positions.tolist() == [[0, 1, 2, 3, 4, 0, 1, 0, 1, 2]]
    assert packing.starts.tolist() == [0, 5, 7]
    assert packing.grids == ((2, 5), (1, 3))
    assert packing.cells.tolist() == [0, 1, 2, 3, 4, 5, 6, 10, 11, 12]


def test_columns_behind_the_longest_row_are_cut() -> None:
    packing = pack(IDS, LENGTHS - 1)
    assert (packing.grids[0][1], packing.ids.tolist()) == (4, [[5, 6, 7, 8, 4, 9, 8]])


def test_the_last_feed_forward_runs_where_a_state_is_wanted_and_every_other_on_all_tokens() -> None:
    model = make_qwen3()
    seen: list[int] = []
    for layer in model.model.layers:
        layer.mlp.gate_proj.register_forward_hook(lambda _, inputs, output: seen.append(output.shape[1]))
    hidden_states(model.model, pack(IDS, LENGTHS), torch.tensor([0, 4, 9]))
    assert seen == [10, 3]


def test_the_model_is_left_as_found() -> None:
    model = make_qwen3()
    hidden_states(model.model, pack(IDS, LENGTHS), torch.tensor([0]))
    assert model.config._attn_implementation == "sdpa"
    mask = torch.tensor([[0, 1]])
    assert model(input_ids=IDS[:1, :2], attention_mask=mask).logits.shape == (1, 2, 16)
    assert not model.model.layers[-1].mlp._forward_hooks
    assert not model.model.layers[-1].mlp._forward_pre_hooks


def test_a_model_in_training_is_probed_without_its_dropout_and_goes_on_training() -> None:
    model = make_qwen3(attention_dropout=0.5).train()
    assert can_pack(model)
    assert model.training and model.model.layers[-1].mlp.training


def test_models_that_packing_would_change_are_refused() -> None:
    """A window of 2 tokens hides what packing would show; GPT-2 in eager mode does not call registered functions."""
    windowed = make_qwen3(use_sliding_window=True, sliding_window=2, max_window_layers=0)
    assert not can_pack(windowed)
    eager = make_qwen3()
    eager.set_attn_implementation("eager")
    assert not can_pack(eager)


def test_take_and_put_are_inverse_and_their_gradients_copies() -> None:
    values = torch.arange(6.0).view(3, 2).requires_grad_()
    index = torch.tensor([2, 0])
    taken = take(values, index)
    assert taken.tolist() == [[4, 5], [0, 1]]
    whole = put(taken, index, 3)
    assert whole.tolist() == [[0, 1], [0, 0], [4, 5]]
    (gradient,) = torch.autograd.grad((whole * torch.tensor([[1.0], [10.0], [100.0]])).sum(), values)
    assert gradient.tolist() == [[1, 1], [0, 0], [100, 100]]
