from __future__ import annotations

import functools
import inspect
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from trl.trainer.utils import add_fused_lm_head

from plumbline.tasks.models import packed_head
from plumbline.tasks.models.completions import packs
from plumbline.tasks.models.logps import pad_right
from plumbline.tasks.models.packed_head import read_packed
from tests.tasks.models.test_packing import make_llama, make_qwen3

OUTPUTS = ("log_probs", "entropy", "mean_logits", "is_top1", "log_sum_sq_probs")

Batch = dict[str, torch.Tensor]


def batch(side: str = "right") -> Batch:
    """24 rows, 3 each with one prompt of 2 to 5 tokens, and completions of 0 to 6, which are labelled.

    Padded on the right as in DPO, or with prompts on the left and completions on the right as in GRPO.
    """
    draw = torch.Generator().manual_seed(0)

    def tokens(count: int) -> list[int]:
        return torch.randint(1, 16, (count,), generator=draw).tolist()

    prompts = [tokens(2 + number % 4) for number in range(8)]
    heads = [prompts[row // 3] for row in range(24)]
    tails = [tokens(row * 5 % 7) for row in range(24)]
    if side == "right":
        ids, mask = pad_right([head + tail for head, tail in zip(heads, tails, strict=True)], 0)
        begin = torch.tensor([len(head) for head in heads]).unsqueeze(1)
        labelled = mask.bool() & (torch.arange(ids.shape[1]) >= begin)
    else:
        flipped, left = pad_right([head[::-1] for head in heads], 0)
        right, tail_mask = pad_right(tails, 0)
        ids, mask = torch.cat([flipped.flip(1), right], 1), torch.cat([left.flip(1), tail_mask], 1)
        labelled = torch.cat([torch.zeros_like(left), tail_mask], 1).bool()
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(~labelled, -100)}


def with_head(model: Any, temperature: float = 1.0) -> Any:
    add_fused_lm_head(model, temperature=temperature, outputs=OUTPUTS)
    return model


def packed_only(model: Any, temperature: float = 1.0) -> Any:
    """A model whose fused head is an error, so that what is packed cannot have fallen back to it."""
    own = type(model).forward

    @functools.wraps(own)
    def forward(*args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        assert not fused_lm_head, "not packed"
        return own(model, *args, **kwargs)

    model.forward = forward
    read_packed(model, OUTPUTS, temperature)
    return model


@pytest.mark.parametrize("side", ["right", "between"])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("make", [make_qwen3, lambda: make_qwen3(key_value_heads=1), make_llama])
def test_numbers_and_gradients_are_those_of_the_fused_head(
    make: Any, temperature: float, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_head, "ROWS", 10)  # three passes
    given = batch(side)
    models = with_head(make(), temperature), packed_only(make(), temperature)
    results, gradients = [], []
    for model in models:
        output = model(**given, fused_lm_head=True)
        weights = torch.linspace(-1, 1, output.log_probs.numel()).view(output.log_probs.shape)
        total = (output.log_probs * weights).sum() + 0.1 * (output.entropy * weights).sum() + output.loss
        gradients.append(torch.autograd.grad(total, list(model.parameters())))
        results.append(output)
    fused, ours = results
    assert fused.keys() == ours.keys()
    for name, expected in fused.items():
        torch.testing.assert_close(ours[name], expected, atol=1e-5, rtol=1e-4)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_a_row_by_hand() -> None:
    """Padding, prompt 5 6, completion 7 8: labels 7 and 8 are predicted at columns 2 and 3, of 0 to 3."""
    ids = torch.tensor([[0, 5, 6, 7, 8]])
    mask = torch.tensor([[0, 1, 1, 1, 1]])
    labels = torch.tensor([[-100, -100, -100, 7, 8]])
    model = packed_only(make_qwen3())
    output = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
    logps = type(model).forward(model, input_ids=ids[:, 1:]).logits.log_softmax(-1)[0]
    expected = torch.stack([logps[1, 7], logps[2, 8]])
    torch.testing.assert_close(output.log_probs[0], torch.cat([torch.zeros(2), expected]))
    torch.testing.assert_close(output.loss, -expected.mean())
    halved = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True, num_items_in_batch=4)
    torch.testing.assert_close(halved.loss, -expected.sum() / 4)
    assert output.label_mask.tolist() == [[False, False, True, True]]


def test_prompts_are_read_once_and_padding_and_rows_without_a_label_never() -> None:
    given = batch()
    model = packed_only(make_qwen3())
    assert packs(model)
    seen: list[int] = []
    model.model.layers[0].register_forward_hook(lambda _, inputs, output: seen.append(inputs[0].shape[1]))
    with torch.no_grad():
        model(**given, fused_lm_head=True)
    labelled = given["labels"] != -100
    heads = [
        row[: int(marks.long().argmax()) - 1].tolist()
        for row, marks in zip(given["input_ids"], labelled, strict=True)
        if marks.any()
    ]
    beginnings = {tuple(head[:end]) for head in heads for end in range(1, len(head) + 1)}
    # of each row besides, what predicts its labels: the last token of the prompt and all of the completion but its end
    assert seen == [len(beginnings) + int(labelled.sum())]


def holes(given: Batch) -> Batch:
    return given | {"attention_mask": given["attention_mask"].clone().index_fill(1, torch.tensor([1]), 0)}


def first_labelled(given: Batch) -> Batch:
    mask = torch.cat([torch.zeros(24, 1, dtype=torch.long), given["attention_mask"][:, 1:]], 1)
    return given | {"attention_mask": mask, "labels": given["input_ids"].clone()}


@pytest.mark.parametrize(
    "change",
    [
        holes,
        first_labelled,
        lambda given: given | {"labels": torch.full_like(given["labels"], -100)},
        lambda given: given | {"position_ids": torch.arange(given["input_ids"].shape[1])[None]},
    ],
)
def test_batches_that_do_not_fit_are_left_to_the_fused_head(change: Any) -> None:
    given = change(batch())
    fused, ours = with_head(make_qwen3()), with_head(make_qwen3())
    read_packed(ours, OUTPUTS)
    expected, found = (model(**given, fused_lm_head=True) for model in (fused, ours))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-5)
    with pytest.raises(AssertionError, match="not packed"):
        packed_only(make_qwen3())(**given, fused_lm_head=True)


def test_models_that_do_not_fit_are_left_to_the_fused_head() -> None:
    assert packs(make_qwen3())
    assert not packs(make_qwen3(use_sliding_window=True, sliding_window=2, max_window_layers=0))
    thinned = make_qwen3(attention_dropout=0.1)
    assert packs(thinned)  # in evaluation
    assert not packs(thinned.train())
    adapted = make_qwen3()
    assert packs(adapted)
    get_peft_model(adapted, LoraConfig(r=2, lora_dropout=0.1, target_modules=["q_proj"])).train()
    assert not packs(adapted)
    assert not packs(make_qwen3().to(torch.bfloat16))
    recomputing = make_qwen3().train()
    assert packs(recomputing)
    recomputing.activation_checkpointing_enable()
    assert not packs(recomputing)


def test_without_the_flag_the_forward_is_the_models_own() -> None:
    """Sampling calls it so, and `generate` reads its signature."""
    plain = make_qwen3()
    model = make_qwen3()
    add_fused_lm_head(model, outputs=OUTPUTS)
    read_packed(model, OUTPUTS)
    ids = batch()["input_ids"]
    torch.testing.assert_close(model(input_ids=ids).logits, plain(input_ids=ids).logits, atol=1e-5, rtol=1e-5)
    assert inspect.signature(model.forward) == inspect.signature(plain.forward)
