from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plumbline.data_contracts.errors import ModelError
from plumbline.data_contracts.records import Message
from plumbline.tasks.models.chat import encode_prompts
from plumbline.tasks.models.completions import packs
from plumbline.tasks.models.logps import token_logps
from plumbline.tasks.models.sampling import Completion, invert_cdf, sample, stop_token_ids

TEXTS = ("one", "please refund the order", "a", "is one two", "yes", "the order is one two three please", "is one two")
PROMPTS = [(Message(role="user", content=text),) for text in TEXTS]


def run(model: Any, tokenizer: Any, **changed: Any) -> list[Completion]:
    given = {"max_new_tokens": 12, "temperature": 1.0, "top_p": 1.0, "seed": 3, "batch_size": 4} | changed
    return sample(model, tokenizer, given.pop("prompts", PROMPTS), **given)


@torch.no_grad()
def naive(model: Any, tokenizer: Any, *, steps: int, temperature: float, top_p: float, seed: int) -> list[list[int]]:
    """One prompt at a time, a full forward a token, the cumulative distribution walked token by token."""
    heads = encode_prompts(tokenizer, PROMPTS)
    draws = torch.rand((len(heads), steps), generator=torch.Generator().manual_seed(seed))
    stops = stop_token_ids(model, tokenizer)
    results = []
    for head, row in zip(heads, draws.tolist(), strict=True):
        tokens: list[int] = []
        for draw in row:
            probs = (model(torch.tensor([head + tokens])).logits[0, -1] / temperature).softmax(-1).tolist()
            order = sorted(range(len(probs)), key=lambda token: -probs[token]) if top_p < 1 else list(range(len(probs)))
            kept, mass = [], 0.0
            for token in order:
                if mass >= top_p:
                    break
                kept.append(token)
                mass += probs[token]
            total, cumulative, chosen = sum(probs[token] for token in kept), 0.0, kept[-1]
            for token in kept:
                cumulative += probs[token]
                if draw * total < cumulative:
                    chosen = token
                    break
            tokens.append(chosen)
            if chosen in stops:
                break
        results.append(tokens)
    return results


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.6)])
def test_picks_the_tokens_of_the_naive_sampler(
    tiny: tuple[Any, Any], temperature: float, top_p: float, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = tiny
    assert packs(model)
    monkeypatch.setattr("plumbline.tasks.models.sampling.packs", lambda _: packed)
    found = run(model, tokenizer, temperature=temperature, top_p=top_p)
    expected = naive(model, tokenizer, steps=12, temperature=temperature, top_p=top_p, seed=3)
    assert [list(completion.token_ids) for completion in found] == expected


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probabilities_equal_a_full_forward(tiny: tuple[Any, Any], temperature: float) -> None:
    model, tokenizer = tiny
    found = run(model, tokenizer, temperature=temperature, top_p=0.9)
    pairs = list(zip(encode_prompts(tokenizer, PROMPTS), [list(row.token_ids) for row in found], strict=True))
    full = token_logps(model, pairs, max_length=128, batch_size=1, temperature=temperature)
    for completion, logps in zip(found, full, strict=True):
        torch.testing.assert_close(torch.tensor(completion.logps), logps, atol=1e-4, rtol=0)


@pytest.mark.training
def test_greedy_equals_generate_of_transformers(tiny: tuple[Any, Any]) -> None:
    model, tokenizer = tiny
    found = run(model, tokenizer, temperature=0.0)
    for head, completion in zip(encode_prompts(tokenizer, PROMPTS), found, strict=True):
        expected = model.generate(torch.tensor([head]), max_new_tokens=12, do_sample=False)[0, len(head) :].tolist()
        assert list(completion.token_ids) == expected


@pytest.mark.training
def test_independent_of_batch_size_and_of_later_prompts(tiny: tuple[Any, Any]) -> None:
    model, tokenizer = tiny
    tokens = [[row.token_ids for row in run(model, tokenizer, batch_size=size)] for size in (1, 2, 6)]
    assert tokens[0] == tokens[1] == tokens[2]
    assert [row.token_ids for row in run(model, tokenizer, prompts=PROMPTS[:2])] == tokens[0][:2]
    assert [row.token_ids for row in run(model, tokenizer, seed=4)] != tokens[0]


@pytest.mark.training
def test_a_row_ends_at_any_stop_token_and_its_text_leaves_it_out(tiny: tuple[Any, Any]) -> None:
    model, tokenizer = tiny
    found = run(model, tokenizer, prompts=PROMPTS * 8, max_new_tokens=60)
    stops = set(stop_token_ids(model, tokenizer))
    assert any(row.finished for row in found)
    assert any(not row.finished for row in run(model, tokenizer, max_new_tokens=1, prompts=PROMPTS * 8))
    for row in found:
        assert row.finished == (row.token_ids[-1] in stops)
        assert not stops & set(row.token_ids[:-1])
        assert len(row.token_ids) == len(row.logps)
        assert "</s>" not in row.text


@pytest.mark.training
def test_frequencies_follow_the_distribution(tiny: tuple[Any, Any]) -> None:
    """4,000 first tokens of one prompt: each frequency within 4 standard deviations of its probability."""
    model, tokenizer = tiny
    found = run(model, tokenizer, prompts=PROMPTS[:1] * 4000, max_new_tokens=1, batch_size=1000)
    counts = Counter(row.token_ids[0] for row in found)
    head = encode_prompts(tokenizer, PROMPTS[:1])
    with torch.no_grad():
        probs = model(torch.tensor(head)).logits[0, -1].softmax(-1).tolist()
    for token, probability in enumerate(probs):
        deviation = (probability * (1 - probability) / 4000) ** 0.5
        assert abs(counts[token] / 4000 - probability) <= 4 * deviation + 1e-3


def test_the_context_ends_a_row_and_a_prompt_that_fills_it_is_refused(tiny: tuple[Any, Any]) -> None:
    """The context is 128 tokens: prompt and answer together never exceed it."""
    model, tokenizer = tiny
    long = (Message(role="user", content="one " * 100),)
    heads = encode_prompts(tokenizer, [long, PROMPTS[0]])
    found = run(model, tokenizer, prompts=[long, PROMPTS[0]], max_new_tokens=500)
    assert all(len(head) + len(row.token_ids) <= 128 for head, row in zip(heads, found, strict=True))
    with pytest.raises(ModelError, match="shorter than the context of 128 tokens, found 1 of 2"):
        run(model, tokenizer, prompts=[(Message(role="user", content="one " * 200),), PROMPTS[0]])


@pytest.mark.training
def test_the_story_model_samples_words_and_stops_at_either_of_its_ends(stories_folder: Any) -> None:
    from plumbline.tasks.models.loading import load_policy, load_tokenizer

    model, tokenizer = load_policy(stories_folder), load_tokenizer(stories_folder)
    assert stop_token_ids(model, tokenizer) == [1, 2]
    found = run(model, tokenizer, max_new_tokens=24, temperature=0.5)
    assert all(len(row.text.split()) > 3 for row in found if not row.finished)


def test_absolute_positions_count_from_the_prompt_not_from_the_padding(tiny: tuple[Any, Any]) -> None:
    """GPT-2 embeds absolute positions, which left padding would shift; rotary models would not show it."""
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = tiny[1]
    torch.manual_seed(0)
    size = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 128, "initializer_range": 0.5}
    config = GPT2Config(vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2, pad_token_id=3, **size)
    model = GPT2LMHeadModel(config).eval()
    found = run(model, tokenizer, batch_size=6)
    expected = naive(model, tokenizer, steps=12, temperature=1.0, top_p=1.0, seed=3)
    assert [list(completion.token_ids) for completion in found] == expected


@pytest.mark.training
@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([0.0, 1e-7, 0.1, 0.5, 3.0]), min_size=1, max_size=8), st.floats(0, 1, exclude_max=True))
def test_inverse_cdf_never_picks_a_token_without_mass(weights: list[float], draw: float) -> None:
    if sum(weights) == 0:
        weights[0] = 1.0
    index = int(invert_cdf(torch.tensor([weights]), torch.tensor([draw], dtype=torch.float32).clamp(max=1 - 2**-24))[0])
    assert weights[index] > 0


def test_inverse_cdf_by_hand() -> None:
    """Weights 1, 0, 3 (total 4): u·4 below 1 is token 0, from 1 on token 2."""
    weights = torch.tensor([[1.0, 0.0, 3.0]]).expand(4, 3)
    assert invert_cdf(weights, torch.tensor([0.0, 0.24, 0.25, 0.99])).tolist() == [0, 0, 2, 2]
