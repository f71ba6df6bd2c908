from __future__ import annotations

from typing import Any

import pytest
import torch

from plumbline.data_contracts.errors import ModelError
from plumbline.data_contracts.records import Message
from plumbline.tasks.models.chat import encode, encode_all
from plumbline.tasks.models.completions import packs
from plumbline.tasks.models.logps import length_sorted_batches, pad_right, token_logps

PROMPTS = [(Message(role="user", content=text),) for text in ("one", "please refund the order", "a", "is one two")]
COMPLETIONS = ["yes please", "no", "the order is three two one", ""]


@torch.no_grad()
def naive_logps(model: Any, head: list[int], tail: list[int], temperature: float) -> torch.Tensor:
    """One sequence, one full forward, log-softmax at every position."""
    logits = model(torch.tensor([head + tail])).logits[0] / temperature
    logps = logits.log_softmax(-1)
    return torch.stack([logps[len(head) - 1 + step, token] for step, token in enumerate(tail)])


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_equals_a_full_forward_a_sequence(
    tiny: tuple[Any, Any], batch_size: int, temperature: float, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = tiny
    assert packs(model)
    monkeypatch.setattr("plumbline.tasks.models.logps.packs", lambda _: packed)
    pairs = encode_all(tokenizer, PROMPTS, COMPLETIONS)
    found = token_logps(model, pairs, max_length=128, batch_size=batch_size, temperature=temperature)
    for prompt, completion, logps in zip(PROMPTS, COMPLETIONS, found, strict=True):
        expected = naive_logps(model, *encode(tokenizer, prompt, completion), temperature)
        assert logps.shape == expected.shape
        torch.testing.assert_close(logps, expected, atol=1e-5, rtol=0)


def test_story_model_with_pad_equal_to_eos(stories_folder: Any) -> None:
    from plumbline.tasks.models.loading import load_policy, load_tokenizer

    model, tokenizer = load_policy(stories_folder), load_tokenizer(stories_folder)
    found = token_logps(model, encode_all(tokenizer, PROMPTS, COMPLETIONS), max_length=512, batch_size=4)
    for prompt, completion, logps in zip(PROMPTS, COMPLETIONS, found, strict=True):
        expected = naive_logps(model, *encode(tokenizer, prompt, completion), 1.0)
        torch.testing.assert_close(logps, expected, atol=1e-5, rtol=0)


def test_a_model_without_the_shortcut_gives_the_same(tiny: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny
    monkeypatch.setattr("plumbline.tasks.models.logps.packs", lambda _: False)
    fast = token_logps(model, encode_all(tokenizer, PROMPTS, COMPLETIONS), max_length=128, batch_size=2)
    monkeypatch.setattr("plumbline.tasks.models.logps.accepts", lambda *_: False)
    plain = token_logps(model, encode_all(tokenizer, PROMPTS, COMPLETIONS), max_length=128, batch_size=2)
    for one, other in zip(fast, plain, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_too_long_sequences_are_refused_with_their_number(tiny: tuple[Any, Any]) -> None:
    with pytest.raises(ModelError, match=r"at most 5 tokens .* found 1 of 2 sequences longer \(the longest has 6\)"):
        token_logps(tiny[0], [([1, 4], [5]), ([1, 4, 5, 6], [7, 2])], max_length=5, batch_size=2)


def test_a_prompt_of_one_token_is_enough_and_one_of_none_is_refused(tiny: tuple[Any, Any]) -> None:
    found = token_logps(tiny[0], [([4], [5, 7]), ([1, 4, 6], [5])], max_length=8, batch_size=2)
    torch.testing.assert_close(found[0], naive_logps(tiny[0], [4], [5, 7], 1.0), atol=1e-5, rtol=0)
    with pytest.raises(ModelError, match="A prompt has no tokens"):
        token_logps(tiny[0], [([4], [5]), ([], [5])], max_length=8, batch_size=2)


def test_the_mode_of_the_model_is_left_as_found(tiny: tuple[Any, Any]) -> None:
    model = tiny[0].train()
    token_logps(model, [([1, 4], [5])], max_length=8, batch_size=1)
    assert model.training
    model.eval()


def test_batches_are_sorted_by_length_and_lose_no_row() -> None:
    """Lengths 2, 9, 4, 9: longest first, equal ones in their order, so 1, 3, 2, 0."""
    assert list(length_sorted_batches([2, 9, 4, 9], 3)) == [[1, 3, 2], [0]]


def test_right_padding() -> None:
    ids, mask = pad_right([[5], [6, 7]], padding_id=9)
    assert ids.tolist() == [[5, 9], [6, 7]]
    assert mask.tolist() == [[1, 0], [1, 1]]
