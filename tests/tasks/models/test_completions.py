from __future__ import annotations

import torch

from plumbline.tasks.models.completions import Layout, completion_logits, located, packs
from plumbline.tasks.models.logps import pad_right
from tests.tasks.models.test_packing import make_qwen3


def test_logits_and_gradients_are_those_of_padded_rows_where_prompts_are_alike() -> None:
    """Three rows of one prompt, one of its beginning, one of another; a response starts where a prompt goes on."""
    prompts = [[1, 2, 3, 4]] * 3 + [[1, 2], [5, 2, 3]]
    responses = [[6, 7], [6, 7], [8], [3, 4, 9, 9, 9], [4]]
    ids, mask = pad_right([head + tail for head, tail in zip(prompts, responses, strict=True)], 0)
    heads = torch.tensor([len(head) for head in prompts])
    _, tails = pad_right(responses, 0)
    place = located(ids, heads, mask.sum(1), tails.bool())
    assert place.pop("targets").tolist() == [6, 7, 6, 7, 8, 3, 4, 9, 9, 9, 4]
    model = make_qwen3()
    found, gradients = [], []
    for packed in (False, True):
        layout = Layout.of(**place, packed=packed)
        logits = completion_logits(model, layout, direct=packed)
        weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
        gradients.append(torch.autograd.grad((logits * weights).sum(), list(model.parameters())))
        found.append(logits.detach())
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-4)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    assert layout.packing is not None
    # 1 2 3 of the first prompt and 1 of the fourth are shared: 3 + 5 2 are beginnings; the rest is each row's own
    own = [2, 2, 1, 5, 1]  # the last token of a prompt, and the response but for its end
    assert layout.packing.ids.shape[1] == 3 + 2 + sum(own)


def test_what_a_trainer_puts_around_a_forward_does_not_decide_whether_a_model_packs() -> None:
    """accelerate wraps a forward in autocast: its bfloat16 logits are not the head's float32 ones on those states."""
    half = torch.autocast("cpu", dtype=torch.bfloat16)
    wrapped = make_qwen3()
    wrapped.forward = half(wrapped.forward)
    assert packs(wrapped)
    with half:
        assert packs(make_qwen3())
