from __future__ import annotations

from typing import Any

import pytest
import torch

from data_contracts.errors import ModelError
from data_contracts.records import Message
from tasks.models.chat import encode, encode_all
from tasks.models.logps import length_sorted_batches, logps_and_entropies, pad_right, target_logps, token_logps

PROMPTS = [(Message(role="user", content=text),) for text in ("one", "please refund the order", "a", "is one two")]
COMPLETIONS = ["yes please", "no", "the order is three two one", ""]


@torch.no_grad()
def naive_logps(model: Any, head: list[int], tail: list[int], temperature: float) -> torch.Tensor:
    """One sequence, one full forward, log-softmax at every position."""
    logits = model(torch.tensor([head + tail])).logits[0] / temperature
    logps = logits.log_softmax(-1)
    return torch.stack([logps[len(head) - 1 + step, token] for step, token in enumerate(tail)])


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_equals_a_full_forward_a_sequence(tiny: tuple[Any, Any], batch_size: int, temperature: float) -> None:
    model, tokenizer = tiny
    pairs = encode_all(tokenizer, PROMPTS, COMPLETIONS)
    found = token_logps(model, pairs, max_length=128, batch_size=batch_size, temperature=temperature)
    for prompt, completion, logps in zip(PROMPTS, COMPLETIONS, found, strict=True):
        expected = naive_logps(model, *encode(tokenizer, prompt, completion), temperature)
        assert logps.shape == expected.shape
        torch.testing.assert_close(logps, expected, atol=1e-5, rtol=0)


def test_story_model_with_pad_equal_to_eos(stories_folder: Any) -> None:
    from tasks.models.loading import load_policy, load_tokenizer

    model, tokenizer = load_policy(stories_folder), load_tokenizer(stories_folder)
    found = token_logps(model, encode_all(tokenizer, PROMPTS, COMPLETIONS), max_length=512, batch_size=4)
    for prompt, completion, logps in zip(PROMPTS, COMPLETIONS, found, strict=True):
        expected = naive_logps(model, *encode(tokenizer, prompt, completion), 1.0)
        torch.testing.assert_close(logps, expected, atol=1e-5, rtol=0)


def test_a_model_without_the_shortcut_gives_the_same(tiny: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny
    fast = token_logps(model, encode_all(tokenizer, PROMPTS, COMPLETIONS), max_length=128, batch_size=2)
    monkeypatch.setattr("tasks.models.logps.accepts", lambda *_: False)
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


def test_the_gradient_of_target_logps_is_that_of_the_naive_form() -> None:
    """Naive: log_softmax and gather. By hand: of logits (0, 0), log p(target) = -ln 2 and its gradient ±1/2."""
    torch.manual_seed(0)
    logits = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 6, 3, 3, 1])
    weights = torch.randn(5, dtype=torch.float64)
    naive = logits.log_softmax(-1).gather(1, targets.unsqueeze(1)).squeeze(1)
    found = target_logps(logits, targets)
    torch.testing.assert_close(found, naive)
    torch.testing.assert_close(
        *(torch.autograd.grad((each * weights).sum(), logits, retain_graph=True) for each in (found, naive))
    )
    even = torch.zeros(1, 2, requires_grad=True)
    logp = target_logps(even, torch.tensor([1]))
    (gradient,) = torch.autograd.grad(logp.sum(), even)
    torch.testing.assert_close(logp, torch.tensor([-0.6931472]))
    torch.testing.assert_close(gradient, torch.tensor([[-0.5, 0.5]]))


def test_a_token_whose_probability_is_no_float32_has_its_log_probability_still() -> None:
    """Logits (1000, 800): the second has e^-200, which float32 holds as 0, and log p = -200, with gradient (-1, 1)."""
    logits = torch.tensor([[1000.0, 800.0]], requires_grad=True)
    for logp in (target_logps(logits, torch.tensor([1])), logps_and_entropies(logits, torch.tensor([1]))[0]):
        (gradient,) = torch.autograd.grad(logp.sum(), logits)
        assert logp.tolist() == [-200]
        assert gradient.tolist() == [[-1, 1]]


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (0.7, -0.3)])
def test_entropies_and_their_gradient_are_those_of_the_naive_form(weights: tuple[float, float]) -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 6, 3, 3, 1])
    rows = torch.randn(2, 5, dtype=torch.float64)
    everything = logits.log_softmax(-1)
    naive = everything.gather(1, targets.unsqueeze(1)).squeeze(1), -(everything.exp() * everything).sum(-1)
    found = logps_and_entropies(logits, targets)
    gradients = []
    for logps, entropies in (naive, found):
        total = weights[0] * (logps * rows[0]).sum() + weights[1] * (entropies * rows[1]).sum()
        gradients.append(torch.autograd.grad(total, logits, retain_graph=True)[0])
    for one, other in zip([*naive, gradients[0]], [*found, gradients[1]], strict=True):
        torch.testing.assert_close(one, other)


def test_entropies_of_an_even_choice_by_hand() -> None:
    """Of even logits (0, 0): log p = -ln 2, H = ln 2; the gradient of log p is (1/2, -1/2), that of H is 0."""
    even = torch.zeros(1, 2, requires_grad=True)
    logps, entropies = logps_and_entropies(even, torch.tensor([0]))
    torch.testing.assert_close(torch.stack([logps, entropies]).flatten(), torch.tensor([-0.6931472, 0.6931472]))
    of_logps = torch.autograd.grad(logps.sum(), even, retain_graph=True)[0]
    torch.testing.assert_close(of_logps, torch.tensor([[0.5, -0.5]]))
    torch.testing.assert_close(torch.autograd.grad(entropies.sum(), even)[0], torch.zeros(1, 2))
