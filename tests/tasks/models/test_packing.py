from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plumbline.tasks.models.logps import pad_right
from plumbline.tasks.models.packing import can_pack, ends_plainly, hidden_states, pack, prefill, take

IDS = torch.tensor([[5, 6, 7, 8, 9], [4, 5, 0, 0, 0], [9, 8, 7, 0, 0]])
LENGTHS = torch.tensor([5, 2, 3])
NONE = torch.tensor([0, 0, 0])
"""No token is shared with another row."""


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


def make_granite() -> Any:
    """Layers of the same names, which scale what they add to the residual stream."""
    from transformers import GraniteConfig, GraniteForCausalLM

    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = GraniteConfig(vocab_size=16, initializer_range=0.5, residual_multiplier=0.3, **size)
    return GraniteForCausalLM(config).eval()


def make_olmo2() -> Any:
    """Norms behind attention and feed-forward, none of them named as Llama's first."""
    from transformers import Olmo2Config, Olmo2ForCausalLM

    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return Olmo2ForCausalLM(Olmo2Config(vocab_size=16, initializer_range=0.5, pad_token_id=0, **size)).eval()


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
    monkeypatch.setattr("plumbline.tasks.models.packing.GRID_ROWS", grid_rows)
    model = make()
    packing = pack(IDS, LENGTHS, NONE)
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
    monkeypatch.setattr("plumbline.tasks.models.packing.GRID_ROWS", 2)
    packing = pack(IDS, LENGTHS, NONE)
    assert packing.ids.tolist() == [[5, 6, 7, 8, 9, 4, 5, 9, 8, 7]]
    assert packing.positions.tolist() == [[0, 1, 2, 3, 4, 0, 1, 0, 1, 2]]
    assert packing.starts.tolist() == [0, 5, 7]
    assert packing.grids == ((2, 5), (1, 3))
    assert packing.cells.tolist() == [0, 1, 2, 3, 4, 5, 6, 10, 11, 12]
    assert packing.shown[packing.cells].tolist() == list(range(10))
    assert packing.repeated is None


SHARED = torch.tensor([[5, 6, 7, 8, 9], [5, 6, 7, 0, 0], [5, 6, 8, 8, 0], [4, 5, 6, 0, 0], [5, 6, 7, 8, 9]])
SHARED_LENGTHS = torch.tensor([5, 3, 4, 3, 5])
SHAREABLE = torch.tensor([4, 2, 3, 1, 4])


def test_what_rows_begin_with_is_packed_once_by_hand() -> None:
    """In the order of a dictionary: row 3 (4 5 6), row 1 (5 6 | 7), rows 0 and 4 (5 6 7 8 | 9), row 2 (5 6 8 | 8).

    Row 1 owns 5 6, of which 2 may be shared; row 0 has 7 8 9 of its own; row 4, after it, shares 5 6 7 8 and has 9; row
    2 shares 5 6 and has 8 8. Laid end to end row by row: 7 8 9 | 5 6 7 | 8 8 | 4 5 6 | 9, tokens 0 to 11.
    """
    packing = pack(SHARED, SHARED_LENGTHS, SHAREABLE)
    assert packing.ids.tolist() == [[7, 8, 9, 5, 6, 7, 8, 8, 4, 5, 6, 9]]
    assert packing.positions.tolist() == [[2, 3, 4, 0, 1, 2, 2, 3, 0, 1, 2, 4]]
    last = packing.places(torch.arange(5), SHARED_LENGTHS - 1)
    assert last.tolist() == [2, 5, 7, 10, 11]
    rows = packing.shown.view(5, 5).tolist()
    assert [row[:length] for row, length in zip(rows, SHARED_LENGTHS, strict=True)] == [
        *([3, 4, 0, 1, 2], [3, 4, 5], [3, 4, 6, 7], [8, 9, 10], [3, 4, 0, 1, 11])
    ]
    assert packing.repeated is not None
    cells, tokens = packing.repeated
    assert cells.tolist() == [0, 1, 10, 11, 20, 21, 22, 23]
    assert tokens.tolist() == [3, 4, 3, 4, 3, 4, 0, 1]


@pytest.mark.training
@given(
    rows=st.lists(st.lists(st.integers(1, 2), min_size=1, max_size=6), min_size=1, max_size=40),
    kept=st.integers(1, 6),
)
def test_every_cell_shows_its_token_and_every_beginning_is_packed_once(rows: list[list[int]], kept: int) -> None:
    """Naive: the set of all beginnings of up to `length - kept` tokens, and each token behind them on its own."""
    ids, mask = pad_right(rows, 0)
    lengths = mask.sum(1)
    shareable = (lengths - kept).clamp(min=0)
    packing = pack(ids, lengths, shareable)
    shown = torch.split(packing.shown, [count * width for count, width in packing.grids])
    laid = [row for cells, shape in zip(shown, packing.grids, strict=True) for row in cells.view(shape)]
    for row, cells in zip(rows, laid, strict=True):
        assert packing.ids[0, cells[: len(row)]].tolist() == row
        assert packing.positions[0, cells[: len(row)]].tolist() == list(range(len(row)))
    own = [packing.places(torch.tensor(number), torch.arange(len(row))[-kept:]) for number, row in enumerate(rows)]
    assert len(set(torch.cat(own).tolist())) == sum(map(len, own))
    beginnings = {tuple(row[:end]) for row in rows for end in range(1, len(row) - kept + 1)}
    assert packing.ids.shape[1] == len(beginnings) + sum(map(len, own))


@pytest.mark.parametrize("grid_rows", [16, 2])
@pytest.mark.parametrize("make", [make_qwen3, lambda: make_qwen3(key_value_heads=1), make_llama])
def test_states_and_gradients_of_shared_beginnings_equal_a_forward_a_sequence(
    make: Any, grid_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plumbline.tasks.models.packing.GRID_ROWS", grid_rows)
    model = make()
    wanted = [(row, place) for row in range(5) for place in range(int(SHAREABLE[row]), int(SHARED_LENGTHS[row]))]
    rows, positions = torch.tensor(wanted).unbind(1)
    packing = pack(SHARED, SHARED_LENGTHS, SHAREABLE)
    found = hidden_states(model.model, packing, packing.places(rows, positions))
    each = [
        model.model(input_ids=ids[None, :length]).last_hidden_state[0]
        for ids, length in zip(SHARED, SHARED_LENGTHS, strict=True)
    ]
    expected = torch.stack([each[row][position] for row, position in wanted])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    parameters = list(model.model.parameters())
    ours = torch.autograd.grad((found * weights).sum(), parameters)
    theirs = torch.autograd.grad((expected * weights).sum(), parameters)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("make", [make_qwen3, lambda: make_qwen3(key_value_heads=1), make_llama, make_olmo2])
def test_a_prefill_leaves_the_states_and_the_cache_of_a_forward_a_sequence(make: Any) -> None:
    """Row 4 is row 0 once more: but for its last token all of it is read in row 0."""
    from transformers import DynamicCache

    model = make()
    cache = DynamicCache(config=model.config)
    states = prefill(model.model, SHARED, SHARED_LENGTHS, cache)
    assert pack(SHARED, SHARED_LENGTHS, SHARED_LENGTHS - 1).ids.shape[1] == 5 + 1 + 2 + 3 + 1
    for row, (ids, length) in enumerate(zip(SHARED, SHARED_LENGTHS, strict=True)):
        expected = model.model(input_ids=ids[None, :length], use_cache=True)
        torch.testing.assert_close(states[row], expected.last_hidden_state[0, -1], atol=1e-5, rtol=1e-5)
        for ours, theirs in zip(cache.layers, expected.past_key_values.layers, strict=True):
            torch.testing.assert_close(ours.keys[row, :, :length], theirs.keys[0], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(ours.values[row, :, :length], theirs.values[0], atol=1e-5, rtol=1e-5)


def test_columns_behind_the_longest_row_are_cut() -> None:
    packing = pack(IDS, LENGTHS - 1, NONE)
    assert (packing.grids[0][1], packing.ids.tolist()) == (4, [[5, 6, 7, 8, 4, 9, 8]])


def test_what_follows_the_last_attention_runs_where_a_state_is_wanted_and_all_else_on_all_tokens() -> None:
    model = make_qwen3()
    seen: dict[str, list[int]] = {}
    for name, module in model.model.named_modules():
        if not list(module.children()) and name != "rotary_emb":
            module.register_forward_hook(
                lambda _, inputs, output, name=name: seen.setdefault(name, []).append(output.shape[1])
            )
    hidden_states(model.model, pack(IDS, LENGTHS, NONE), torch.tensor([0, 4, 9]))
    seen.clear()  # of the probe
    hidden_states(model.model, pack(IDS, LENGTHS, NONE), torch.tensor([0, 4, 9]))
    feed_forward = {f"mlp.{name}" for name in ("gate_proj", "up_proj", "act_fn", "down_proj")}
    narrow = {f"layers.1.{name}" for name in feed_forward | {"self_attn.o_proj", "post_attention_layernorm"}} | {"norm"}
    assert {name for name, widths in seen.items() if widths == [3]} == narrow
    assert {name for name, widths in seen.items() if widths == [10]} == seen.keys() - narrow


@pytest.mark.parametrize("make", [make_granite, make_olmo2])
def test_models_whose_layers_are_put_together_otherwise_keep_their_last_layer(make: Any) -> None:
    model = make()
    assert can_pack(model)
    assert not ends_plainly(model.model)
    places = torch.tensor([2, 9])
    found = hidden_states(model.model, pack(IDS, LENGTHS, NONE), places)
    torch.testing.assert_close(found, naive(model)[places], atol=1e-5, rtol=1e-5)


def test_a_layer_with_a_forward_of_its_own_keeps_it() -> None:
    model = make_qwen3()
    layer = model.model.layers[-1]
    layer.forward = own = layer.forward
    assert not ends_plainly(model.model)
    assert can_pack(model)
    assert layer.forward is own


def test_the_model_is_left_as_found() -> None:
    model = make_qwen3()
    assert ends_plainly(model.model)
    hidden_states(model.model, pack(IDS, LENGTHS, NONE), torch.tensor([0]))
    assert model.config._attn_implementation == "sdpa"
    mask = torch.tensor([[0, 1]])
    assert model(input_ids=IDS[:1, :2], attention_mask=mask).logits.shape == (1, 2, 16)
    last = model.model.layers[-1]
    assert "forward" not in vars(last)
    assert not last.self_attn.o_proj._forward_pre_hooks


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


def test_the_gradient_of_take_is_a_copy() -> None:
    values = torch.arange(6.0).view(3, 2).requires_grad_()
    taken = take(values, torch.tensor([2, 0]))
    assert taken.tolist() == [[4, 5], [0, 1]]
    (gradient,) = torch.autograd.grad((taken * torch.tensor([[100.0], [1.0]])).sum(), values)
    assert gradient.tolist() == [[1, 1], [0, 0], [100, 100]]
